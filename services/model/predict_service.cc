#include "services/model/predict_service.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "services/model/retry_hint.h"

namespace millrace {
namespace {

std::span<const uint8_t> BytesOf(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// On the engine's clock, which need not be the wall's.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + (absl::FromChrono(deadline) - absl::Now());
}

absl::StatusOr<InferenceRequest> ToInferenceRequest(const v1::PredictRequest& request, absl::Time deadline) {
  InferenceRequest result;
  switch (request.input_case()) {
    case v1::PredictRequest::kRaw:
      result.kind = InferenceRequest::Kind::kRaw;
      result.input = BytesOf(request.raw());
      break;
    case v1::PredictRequest::kEncodedImage:
      result.kind = InferenceRequest::Kind::kImage;
      result.input = BytesOf(request.encoded_image());
      break;
    case v1::PredictRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError("the request holds no input: set raw or encoded_image");
  }
  result.rows = std::max(request.rows(), 1u);
  result.deadline = deadline;
  result.deterministic = request.deterministic();
  return result;
}

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
  }
  return v1::ModelVersionStatus::STATE_UNSPECIFIED;
}

// One Predict. gRPC deletes it (OnDone) when the call has ended and its handler has returned.
class PredictCall final : public grpc::ServerUnaryReactor {
 public:
  PredictCall(grpc::CallbackServerContext* context, v1::PredictResponse* response)
      : context_(context), response_(response) {}

  void Start(InferenceEngine& engine, std::shared_ptr<const LoadedVersion> version, const InferenceRequest& request) {
    engine_ = &engine;
    const ModelInfo* info = &version->info();  // the engine holds the version until the answer
    ticket_ = engine.Infer(std::move(version), request, [this, info](absl::StatusOr<InferenceAnswer> answer) {
      if (!answer.ok()) return End(answer.status());
      FillResponse(*info, *answer, response_);
      Finish(grpc::Status::OK);
    });
  }

  void End(const absl::Status& status) {
    if (const std::optional<absl::Duration> retry_after = RetryAfter(status)) {
      // What gRPC's own retries obey (gRFC A6, "server pushback").
      context_->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(absl::ToInt64Milliseconds(*retry_after)));
    }
    Finish(ToGrpcStatus(status));
  }

 private:
  // Never before the handler, and with it Start, has returned.
  void OnCancel() override {
    if (engine_ != nullptr) engine_->Cancel(ticket_);
  }
  void OnDone() override { delete this; }

  grpc::CallbackServerContext* const context_;
  v1::PredictResponse* const response_;
  InferenceEngine* engine_ = nullptr;
  InferenceEngine::Ticket ticket_ = 0;
};

}  // namespace

grpc::ServerUnaryReactor* PredictService::Predict(grpc::CallbackServerContext* context,
                                                  const v1::PredictRequest* request, v1::PredictResponse* response) {
  auto* call = new PredictCall(context, response);
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> version = table_.Find(request->model(), request->version());
  const absl::StatusOr<InferenceRequest> inference = ToInferenceRequest(*request, DeadlineOf(*context, clock_));
  if (!version.ok()) {
    call->End(version.status());
  } else if (!inference.ok()) {
    call->End(inference.status());
  } else {
    call->Start(engine_, *std::move(version), *inference);
  }
  return call;
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
  }
  grpc::ServerUnaryReactor* call = context->DefaultReactor();
  call->Finish(grpc::Status::OK);
  return call;
}

}  // namespace millrace
