#include "services/model/predict_service.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/model/explain_call.h"
#include "services/model/inference_call.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

void FillResponse(const ModelInfo& info, const InferenceAnswer& result, v1::PredictResponse* response) {
  response->set_model(info.model);
  response->set_version(info.version);
  response->set_step(info.step);
  response->set_digest(info.digest);
  response->set_queue_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(result.queue)));
  response->set_compute_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(result.compute)));
  response->set_batch_rows(result.batch_rows);
  response->mutable_predictions()->Reserve(static_cast<int>(result.rows));
  for (uint32_t row = 0; row < result.rows; ++row) {
    const float* begin = result.values.data() + row * info.values_per_row();
    const float* end = begin + info.values_per_row();
    v1::Prediction* prediction = response->add_predictions();
    if (info.classes == 0) {
      prediction->mutable_reconstruction()->Assign(begin, end - 1);
      prediction->set_error(*(end - 1));
      continue;
    }
    prediction->set_label(static_cast<uint32_t>(std::max_element(begin, end) - begin));
    prediction->mutable_probabilities()->Assign(begin, end);
  }
}

absl::StatusOr<std::shared_ptr<const LoadedVersion>> FindVersion(const ServingTable& table,
                                                                 const v1::PredictRequest& request) {
  if (request.label().empty()) return table.Find(request.model(), request.version());
  if (request.version() != 0) return absl::InvalidArgumentError("the request has both a version and a label");
  return table.FindLabel(request.model(), request.label());
}

v1::ModelVersionStatus::State ToProto(VersionReport::State state) {
  switch (state) {
    case VersionReport::State::kLoading:
      return v1::ModelVersionStatus::STATE_LOADING;
    case VersionReport::State::kServing:
      return v1::ModelVersionStatus::STATE_SERVING;
    case VersionReport::State::kRetired:
      return v1::ModelVersionStatus::STATE_RETIRED;
    case VersionReport::State::kRefused:
      return v1::ModelVersionStatus::STATE_REFUSED;
    case VersionReport::State::kCandidate:
      return v1::ModelVersionStatus::STATE_CANDIDATE;
  }
  return v1::ModelVersionStatus::STATE_UNSPECIFIED;
}

}  // namespace

grpc::ServerUnaryReactor* PredictService::Predict(grpc::CallbackServerContext* context,
                                                  const v1::PredictRequest* request, v1::PredictResponse* response) {
  auto* call = new InferenceCall(context);
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> version = FindVersion(table_, *request);
  absl::StatusOr<InferenceRequest> inference = ToInferenceRequest(*request, DeadlineOf(*context, clock_));
  if (inference.ok()) {
    inference->deterministic = request->deterministic();
    inference->any_version = request->version() == 0 && request->label().empty();
    inference->key = request->key();
  }
  if (!version.ok()) {
    call->End(version.status());
  } else if (!inference.ok()) {
    call->End(inference.status());
  } else {
    call->Start(
        engine_, RouteRequest(*std::move(version), *inference), *inference,
        [response](const ModelInfo& info, const InferenceAnswer& answer) { FillResponse(info, answer, response); });
  }
  return call;
}

grpc::ServerUnaryReactor* PredictService::Explain(grpc::CallbackServerContext* context,
                                                  const v1::ExplainRequest* request, v1::ExplainResponse* response) {
  return StartExplainCall(context, *request, response, table_, explainer_, clock_);
}

grpc::ServerUnaryReactor* PredictService::ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                                     v1::ListModelsResponse* response) {
  for (const VersionReport& report : table_.Report()) {
    v1::ModelVersionStatus* status = response->add_versions();
    status->set_model(report.model);
    status->set_version(report.version);
    status->set_state(ToProto(report.state));
    status->set_reason(report.reason);
    status->set_accuracy(report.accuracy);
    status->set_requests(report.requests);
    status->set_pinned(report.pinned);
    if (report.canary_score) {
      const bool accuracy = report.canary_score->measure == CanaryScore::Measure::kAccuracy;
      accuracy ? status->set_canary_accuracy(report.canary_score->value)
               : status->set_canary_error(report.canary_score->value);
    }
  }
  grpc::ServerUnaryReactor* call = context->DefaultReactor();
  call->Finish(grpc::Status::OK);
  return call;
}

}  // namespace millrace
