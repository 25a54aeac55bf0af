// What the model service answers over HTTP: the Open Inference Protocol under /v2, TensorFlow Serving's under /v1, our
// own for pictures under /api (picture_api.h), and at / the page to draw on.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/http_server.h"
#include "inference/grpc_service.pb.h"
#include "services/model/inference_engine.h"
#include "services/model/open_inference_catalog.h"
#include "services/model/operator_check.h"
#include "services/model/picture_api.h"
#include "services/model/repository_control.h"
#include "services/model/rest_admission.h"

namespace millrace {

//   GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/stats
//   GET  /v2/models/M[/versions/V] and, below it, /ready, /config, /stats; POST .../infer
//   POST /v2/repository/index and, for operators, /v2/repository/models/M/load and .../unload
//   GET  /v1/models/M[/versions/V or /labels/L]; POST the same with :predict
// The header Millrace-Key is the key by which a rollout chooses the version (PredictRequest.key), as is, under /v2, the
// parameter `key`.
// An error is {"error": "..."} with status 400 (also if it is a failed precondition), 401, 403, 404, 405, 415, 429,
// 500, 501, 503 or 504; 429 and 503 may have Retry-After.
//
// Threads: any; a prediction blocks its thread until it is computed, or RestAdmission::kWaitMax, or the parameter
// `timeout`, has passed. The references must outlive the API.
class RestApi {
 public:
  static constexpr int kThreads = 128;
  static constexpr size_t kBodyBytesMax = size_t{16} << 20;    // of one request
  static constexpr size_t kBodiesBytesMax = size_t{32} << 20;  // of all at once: JSON takes some twenty times that
  static_assert(RestAdmission::kPredictionsMax < kThreads);

  // `clock`: the engine's. `operators`: who may load and unload models; never a web page, which a browser tells.
  RestApi(const OpenInferenceCatalog& catalog, InferenceEngine& engine, Explainer& explainer, const Clock& clock,
          RepositoryControl& control, OperatorCheck operators)
      : catalog_(catalog),
        engine_(engine),
        clock_(clock),
        control_(control),
        operators_(std::move(operators)),
        pictures_(catalog, engine, explainer, admission_, clock) {}

  // For the HTTP server.
  HttpApi Api();
  HttpResponse Answer(const HttpRequest& request);

 private:
  struct Target {
    std::string model;
    std::string version;  // empty: the one that serves
    std::string label;    // of TensorFlow Serving; else empty
  };

  absl::StatusOr<HttpResponse> Route(const HttpRequest& request);
  absl::StatusOr<HttpResponse> RouteOpenInference(const HttpRequest& request);
  absl::StatusOr<HttpResponse> RouteModel(const HttpRequest& request, const Target& target, const std::string& verb);
  absl::StatusOr<HttpResponse> RouteRepository(const HttpRequest& request);
  absl::StatusOr<HttpResponse> ControlModel(const HttpRequest& request, const std::string& model, bool load);
  absl::StatusOr<HttpResponse> RouteTensorFlow(const HttpRequest& request);
  absl::StatusOr<HttpResponse> Infer(const HttpRequest& request, const Target& target);
  absl::StatusOr<HttpResponse> Predict(const HttpRequest& request, const Target& target);

  absl::StatusOr<std::shared_ptr<const LoadedVersion>> Find(const Target& target) const;
  // Blocks. The response has raw contents.
  absl::StatusOr<inference::ModelInferResponse> Compute(std::shared_ptr<const LoadedVersion> version,
                                                        const Target& target, const HttpRequest& request,
                                                        const inference::ModelInferRequest& message);

  const OpenInferenceCatalog& catalog_;
  InferenceEngine& engine_;
  const Clock& clock_;
  RepositoryControl& control_;
  const OperatorCheck operators_;
  RestAdmission admission_;
  PictureApi pictures_;
};

}  // namespace millrace
