// What is asked of a model, and of which version.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"
#include "services/model/serving_table.h"

namespace millrace {

struct InferenceQuestion {
  std::shared_ptr<const LoadedVersion> version;
  InferenceRequest request;
};

// Of a request of our own API (PredictRequest, ExplainRequest), whose bytes the question borrows: the version that was
// found, before any rollout has its say. INVALID_ARGUMENT for a request without input, or with both version and label;
// else ServingTable's errors. `deadline` is on the engine's clock.
template <typename Request>
absl::StatusOr<InferenceQuestion> ToQuestion(const ServingTable& table, const Request& request, absl::Time deadline) {
  const bool labelled = !request.label().empty();
  if (labelled && request.version() != 0) {
    return absl::InvalidArgumentError("the request has both a version and a label");
  }
  InferenceQuestion question;
  MILLRACE_ASSIGN_OR_RETURN(question.version, labelled ? table.FindLabel(request.model(), request.label())
                                                       : table.Find(request.model(), request.version()));
  const auto bytes = [](const std::string& text) {
    return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  question.request = {.rows = std::max(request.rows(), 1u),
                      .deadline = deadline,
                      .any_version = !labelled && request.version() == 0,
                      .key = request.key()};
  if (request.has_raw()) {
    question.request.input = bytes(request.raw());
  } else if (request.has_encoded_image()) {
    question.request.kind = InferenceRequest::Kind::kImage;
    question.request.input = bytes(request.encoded_image());
  } else {
    return absl::InvalidArgumentError("the request holds no input: set raw or encoded_image");
  }
  return question;
}

}  // namespace millrace
