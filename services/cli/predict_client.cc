#include "services/cli/predict_client.h"

#include "common/grpc_channel.h"
#include "common/grpc_status.h"

namespace millrace {

PredictClient::PredictClient(const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : stub_(v1::ModelService::NewStub(MakeChannel(address, credentials))) {}

absl::StatusOr<v1::PredictResponse> PredictClient::Predict(const v1::PredictRequest& request, absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::PredictResponse response;
  const grpc::Status status = stub_->Predict(&context, request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

absl::StatusOr<v1::ListModelsResponse> PredictClient::ListModels(absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::ListModelsResponse response;
  const grpc::Status status = stub_->ListModels(&context, {}, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

}  // namespace millrace
