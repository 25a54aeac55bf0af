#include "services/model/open_inference_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "services/model/inference_call.h"
#include "services/model/open_inference.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

using Reactor = grpc::ServerUnaryReactor;
using Context = grpc::CallbackServerContext;

Reactor* End(Context* context, const absl::Status& status) {
  Reactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

template <typename Response>
Reactor* End(Context* context, absl::StatusOr<Response> result, Response* response) {
  if (result.ok()) *response = *std::move(result);
  return End(context, result.status());
}

// Of a call that is to be answered by `call`.
absl::Status StartInference(const OpenInferenceCatalog& catalog, InferenceEngine& engine, absl::Time now,
                            absl::Time deadline, const inference::ModelInferRequest& message,
                            inference::ModelInferResponse* response, InferenceCall* call) {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version,
                            catalog.Find(message.model_name(), message.model_version()));
  MILLRACE_ASSIGN_OR_RETURN(OpenInference checked, ToInference(version->info(), message, now, deadline));
  const auto inference = std::make_shared<const OpenInference>(std::move(checked));
  call->Start(engine, RouteRequest(std::move(version), inference->request), inference->request,
              [inference, response](const ModelInfo& info, const InferenceAnswer& answer) {
                FillResponse(info, *inference, answer, response);
              });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<InferenceQuestion> OpenInferenceStreaming::Ask(const Request& request, absl::Time now,
                                                              absl::Time deadline) {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version,
                            catalog_->Find(request.model_name(), request.model_version()));
  MILLRACE_ASSIGN_OR_RETURN(inference_, ToInference(version->info(), request, now, deadline));
  return InferenceQuestion{.version = RouteRequest(std::move(version), inference_.request),
                           .request = inference_.request};
}

void OpenInferenceStreaming::Fill(const Request&, const ModelInfo& info, const InferenceAnswer& answer,
                                  Response* response) {
  FillResponse(info, inference_, answer, response->mutable_infer_response());
}

void OpenInferenceStreaming::FillFault(const Request& request, const absl::Status& fault, Response* response) {
  response->set_error_message(absl::StrCat(absl::StatusCodeToString(fault.code()), ": ", fault.message()));
  response->mutable_infer_response()->set_id(request.id());
}

Reactor* OpenInferenceService::ServerLive(Context* context, const inference::ServerLiveRequest*,
                                          inference::ServerLiveResponse* response) {
  response->set_live(true);
  return End(context, absl::OkStatus());
}

Reactor* OpenInferenceService::ServerReady(Context* context, const inference::ServerReadyRequest*,
                                           inference::ServerReadyResponse* response) {
  response->set_ready(catalog_.Ready().ok());
  return End(context, absl::OkStatus());
}

Reactor* OpenInferenceService::ModelReady(Context* context, const inference::ModelReadyRequest* request,
                                          inference::ModelReadyResponse* response) {
  const absl::Status ready = catalog_.ModelReady(request->name(), request->version());
  response->set_ready(ready.ok());
  return End(context, absl::IsInvalidArgument(ready) ? ready : absl::OkStatus());
}

Reactor* OpenInferenceService::ServerMetadata(Context* context, const inference::ServerMetadataRequest*,
                                              inference::ServerMetadataResponse* response) {
  *response = catalog_.Server();
  return End(context, absl::OkStatus());
}

Reactor* OpenInferenceService::ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                                             inference::ModelMetadataResponse* response) {
  return End(context, catalog_.Metadata(request->name(), request->version()), response);
}

Reactor* OpenInferenceService::ModelInfer(Context* context, const inference::ModelInferRequest* request,
                                          inference::ModelInferResponse* response) {
  auto* call = new InferenceCall(context);
  const absl::Status status =
      StartInference(catalog_, engine_, clock_.Now(), DeadlineOf(*context, clock_), *request, response, call);
  if (!status.ok()) call->End(status);
  return call;
}

grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
OpenInferenceService::ModelStreamInfer(Context* context) {
  return streams_.Open(OpenInferenceStreaming(catalog_), engine_, clock_, context->peer(),
                       DeadlineOf(*context, clock_));
}

Reactor* OpenInferenceService::ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                                           inference::ModelConfigResponse* response) {
  return End(context, catalog_.Config(request->name(), request->version()), response->mutable_config());
}

Reactor* OpenInferenceService::ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                                               inference::ModelStatisticsResponse* response) {
  return End(context, catalog_.Statistics(request->name(), request->version()), response);
}

Reactor* OpenInferenceService::RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                                               inference::RepositoryIndexResponse* response) {
  *response = catalog_.Index(request->ready());
  return End(context, absl::OkStatus());
}

Reactor* OpenInferenceService::RepositoryModelLoad(Context* context,
                                                   const inference::RepositoryModelLoadRequest* request,
                                                   inference::RepositoryModelLoadResponse*) {
  Reactor* reactor = context->DefaultReactor();
  const auto end = [reactor](const absl::Status& status) { reactor->Finish(ToGrpcStatus(status)); };
  const absl::Status allowed = operators_.Check(*context);
  if (allowed.ok()) {
    control_.Load(*request, end);
  } else {
    end(allowed);
  }
  return reactor;
}

Reactor* OpenInferenceService::RepositoryModelUnload(Context* context,
                                                     const inference::RepositoryModelUnloadRequest* request,
                                                     inference::RepositoryModelUnloadResponse*) {
  absl::Status status = operators_.Check(*context);
  if (status.ok()) status = control_.Unload(*request);
  return End(context, status);
}

}  // namespace millrace
