#include "services/model/predict_service.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"

namespace millrace {
namespace {

std::span<const uint8_t> BytesOf(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

absl::Duration UntilDeadline(const grpc::ServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteDuration();
  return absl::FromChrono(deadline) - absl::Now();
}

absl::StatusOr<InferenceRequest> ToInferenceRequest(const v1::PredictRequest& request,
                                                    const grpc::ServerContext& context) {
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
  result.wait_max = UntilDeadline(context);
  result.cancelled = [&context] { return context.IsCancelled(); };
  return result;
}

void FillResponse(const ModelInfo& info, const InferenceResult& result, v1::PredictResponse* response) {
  response->set_model(info.model);
  response->set_version(info.version);
  response->set_step(info.step);
  response->set_digest(info.digest);
  response->set_queue_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(result.queue)));
  response->set_compute_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(result.compute)));
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

}  // namespace

grpc::Status PredictService::Predict(grpc::ServerContext* context, const v1::PredictRequest* request,
                                     v1::PredictResponse* response) {
  const absl::StatusOr<std::shared_ptr<const LoadedVersion>> version =
      table_.Find(request->model(), request->version());
  if (!version.ok()) return ToGrpcStatus(version.status());
  const absl::StatusOr<InferenceRequest> inference = ToInferenceRequest(*request, *context);
  if (!inference.ok()) return ToGrpcStatus(inference.status());
  const absl::StatusOr<InferenceResult> result = engine_.Infer(**version, *inference);
  if (!result.ok()) return ToGrpcStatus(result.status());
  FillResponse((*version)->info(), *result, response);
  return grpc::Status::OK;
}

grpc::Status PredictService::ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
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
  return grpc::Status::OK;
}

}  // namespace millrace
