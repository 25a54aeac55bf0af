#include "services/model/predict_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "services/model/explain_call.h"
#include "services/model/inference_call.h"
#include "services/model/retry_hint.h"
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
    case VersionReport::State::kStandby:
      return v1::ModelVersionStatus::STATE_STANDBY;
  }
  return v1::ModelVersionStatus::STATE_UNSPECIFIED;
}

void FillVersions(const ServingTable& table, google::protobuf::RepeatedPtrField<v1::ModelVersionStatus>* versions) {
  for (const VersionReport& report : table.Report()) {
    v1::ModelVersionStatus* status = versions->Add();
    status->set_model(report.model);
    status->set_version(report.version);
    status->set_state(ToProto(report.state));
    status->set_reason(report.reason);
    status->set_accuracy(report.accuracy);
    status->set_requests(report.requests);
    status->set_pinned(report.pinned);
    if (!report.canary_score) continue;
    const bool accuracy = report.canary_score->measure == CanaryScore::Measure::kAccuracy;
    accuracy ? status->set_canary_accuracy(report.canary_score->value)
             : status->set_canary_error(report.canary_score->value);
  }
}

// `request` lends its bytes to the question.
absl::StatusOr<InferenceQuestion> ToPredictQuestion(const ServingTable& table, const v1::PredictRequest& request,
                                                    absl::Time deadline) {
  MILLRACE_ASSIGN_OR_RETURN(InferenceQuestion question, ToQuestion(table, request, deadline));
  question.request.deterministic = request.deterministic();
  question.version = RouteRequest(std::move(question.version), question.request);
  return question;
}

}  // namespace

absl::StatusOr<InferenceQuestion> PredictStreaming::Ask(const Request& request, absl::Time, absl::Time deadline) const {
  return ToPredictQuestion(*table_, request.request(), deadline);
}

void PredictStreaming::Fill(const Request& request, const ModelInfo& info, const InferenceAnswer& answer,
                            Response* response) const {
  response->set_id(request.id());
  FillResponse(info, answer, response->mutable_response());
}

void PredictStreaming::FillFault(const Request& request, const absl::Status& fault, Response* response) const {
  response->set_id(request.id());
  response->mutable_fault()->set_code(static_cast<uint32_t>(fault.code()));
  response->mutable_fault()->set_message(std::string(fault.message()));
  if (const std::optional<absl::Duration> after = RetryAfter(fault)) {
    response->mutable_fault()->set_retry_after_milliseconds(static_cast<uint64_t>(absl::ToInt64Milliseconds(*after)));
  }
}

grpc::ServerUnaryReactor* PredictService::Predict(grpc::CallbackServerContext* context,
                                                  const v1::PredictRequest* request, v1::PredictResponse* response) {
  auto* call = new InferenceCall(context);
  absl::StatusOr<InferenceQuestion> question = ToPredictQuestion(table_, *request, DeadlineOf(*context, clock_));
  if (question.ok()) {
    call->Start(
        engine_, std::move(question->version), question->request,
        [response](const ModelInfo& info, const InferenceAnswer& answer) { FillResponse(info, answer, response); });
  } else {
    call->End(question.status());
  }
  return call;
}

grpc::ServerUnaryReactor* PredictService::Explain(grpc::CallbackServerContext* context,
                                                  const v1::ExplainRequest* request, v1::ExplainResponse* response) {
  return StartExplainCall(context, *request, response, table_, explainer_, clock_);
}

grpc::ServerUnaryReactor* PredictService::ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                                     v1::ListModelsResponse* response) {
  FillVersions(table_, response->mutable_versions());
  grpc::ServerUnaryReactor* call = context->DefaultReactor();
  call->Finish(grpc::Status::OK);
  return call;
}

grpc::ServerWriteReactor<v1::WatchVersionsResponse>* PredictService::WatchVersions(grpc::CallbackServerContext*,
                                                                                   const v1::WatchVersionsRequest*) {
  return watchers_.Open(
      [this](v1::WatchVersionsResponse* response) { FillVersions(table_, response->mutable_versions()); });
}

grpc::ServerBidiReactor<v1::PredictStreamRequest, v1::PredictStreamResponse>* PredictService::PredictStream(
    grpc::CallbackServerContext* context) {
  return streams_.Open(PredictStreaming(table_), engine_, clock_, context->peer(), DeadlineOf(*context, clock_));
}

void PredictService::VersionsChanged() {
  watchers_.ForEach([](VersionWatcher& watcher) { watcher.Changed(); });
}

void PredictService::Drain() {
  watchers_.Drain();
  streams_.Drain();
}

}  // namespace millrace
