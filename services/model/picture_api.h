// Predictions and explanations of a picture, in JSON, with the picture as the model saw it. The page (page.html) stands
// on it.
//   GET  /api/models                           an array of what serves: model, version, step, digest, accuracy (0: not
//                                              known), input (channels, height, width), classes (0: a reconstruction)
//   POST /api/models/M[/versions/V]/predict    the same fields, and:
//     image            the prepared picture, 0 to 255, flat [channels, height, width]
//     label, probabilities; of a model without classes: reconstruction (as image, but 0 to 1), error
//     microseconds     prepare, queue, batch_wait, compute
//   POST /api/models/M[/versions/V]/explain?method=integrated-gradients|saliency|occlusion&target=CLASS
//     image, method, target, score, baseline_score, completeness_error (common/model/explanation.h)
//     map              flat [height, width]
//     cached           whether it had been computed before
//     microseconds     prepare, compute
// The body is a PNG or JPEG, with its Content-Type, for which a page of another origin needs a leave that it does not
// get; others are 415. Errors and limits are those of rest_api.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/http_server.h"
#include "common/mutex.h"
#include "services/model/explainer.h"
#include "services/model/inference_engine.h"
#include "services/model/open_inference_catalog.h"
#include "services/model/rest_admission.h"

namespace millrace {

// Any thread; blocks until the answer is computed. The references must outlive the API; `clock`: the engine's.
class PictureApi {
 public:
  static constexpr char kRoot[] = "/api";

  PictureApi(const OpenInferenceCatalog& catalog, InferenceEngine& engine, Explainer& explainer,
             RestAdmission& admission, const Clock& clock)
      : catalog_(catalog), engine_(engine), explainer_(explainer), admission_(admission), clock_(clock) {}

  absl::StatusOr<HttpResponse> Route(const HttpRequest& request);

 private:
  struct Row {
    std::vector<uint8_t> pixels;
    absl::Duration took;
    absl::Time deadline;
  };

  HttpResponse Models() const;
  absl::StatusOr<Row> Prepare(std::string_view picture, const ModelInfo& info);
  absl::StatusOr<HttpResponse> Predict(const std::shared_ptr<const LoadedVersion>& version, const Row& row,
                                       const HttpRequest& asked);
  absl::StatusOr<HttpResponse> Explain(const std::shared_ptr<const LoadedVersion>& version, const Row& row,
                                       const ExplainOptions& options);

  const OpenInferenceCatalog& catalog_;
  InferenceEngine& engine_;
  Explainer& explainer_;
  RestAdmission& admission_;
  const Clock& clock_;

  Mutex decoding_;  // one picture at a time: a large one takes 100 MB
};

}  // namespace millrace
