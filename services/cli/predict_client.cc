#include "services/cli/predict_client.h"

#include "common/grpc_channel.h"
#include "common/grpc_status.h"

namespace millrace {
namespace {

using Stub = v1::ModelService::Stub;

template <typename Request, typename Response>
absl::StatusOr<Response> Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                              const Request& request, absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

}  // namespace

PredictClient::PredictClient(const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : stub_(v1::ModelService::NewStub(MakeRetryingChannel(address, credentials))) {}

absl::StatusOr<v1::PredictResponse> PredictClient::Predict(const v1::PredictRequest& request, absl::Duration timeout) {
  return Call(*stub_, &Stub::Predict, request, timeout);
}

absl::StatusOr<v1::ExplainResponse> PredictClient::Explain(const v1::ExplainRequest& request, absl::Duration timeout) {
  return Call(*stub_, &Stub::Explain, request, timeout);
}

absl::StatusOr<v1::ListModelsResponse> PredictClient::ListModels(absl::Duration timeout) {
  return Call(*stub_, &Stub::ListModels, v1::ListModelsRequest(), timeout);
}

absl::Status PredictClient::WatchVersions(const std::function<void(const v1::WatchVersionsResponse&)>& changed) {
  grpc::ClientContext context;
  const auto stream = stub_->WatchVersions(&context, v1::WatchVersionsRequest());
  v1::WatchVersionsResponse response;
  while (stream->Read(&response)) changed(response);
  const absl::Status status = FromGrpcStatus(stream->Finish());
  return status.ok() ? absl::UnavailableError("the service has ended the call") : status;
}

}  // namespace millrace
