#pragma once

#include <cstdlib>

#include "services/model/inference.h"
#include "services/model/open_inference.h"

namespace millrace {

// As the server does with a request that was read, with an answer that no network gave. Aborts if what passes the
// protocol's checks does not pass the engine's. False: it was refused.
inline bool InferAnyway(const ModelInfo& info, const inference::ModelInferRequest& message, bool raw,
                        inference::ModelInferResponse* response) {
  auto inference = ToInference(info, message, absl::UnixEpoch(), absl::InfiniteFuture());
  if (!inference.ok()) return false;
  if (!CheckRequest(info, inference->request).ok()) std::abort();
  volatile uint8_t sink = 0;
  for (const uint8_t byte : inference->request.input) sink = byte;
  (void)sink;
  inference->raw = inference->raw || raw;
  InferenceAnswer answer;
  answer.rows = inference->request.rows;
  answer.values.assign(answer.rows * info.values_per_row(), 0.5f);
  FillResponse(info, *inference, answer, response);
  return true;
}

// A classifier and an autoencoder, of images that a fuzzer can fill.
inline ModelInfo FuzzedModel(bool classifies) {
  ModelInfo info;
  info.model = "mnist";
  info.version = 7;
  info.input = {.channels = 1, .height = 2, .width = 3};
  info.classes = classifies ? 4 : 0;
  return info;
}

}  // namespace millrace
