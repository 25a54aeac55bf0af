// GRPCInferenceService (proto/inference/grpc_service.proto) over the catalog and the inference engine: translation
// only.
#pragma once

#include "common/clock.h"
#include "inference/grpc_service.grpc.pb.h"
#include "services/model/inference_engine.h"
#include "services/model/inference_stream.h"
#include "services/model/open_inference.h"
#include "services/model/open_inference_catalog.h"
#include "services/model/operator_check.h"
#include "services/model/repository_control.h"
#include "services/model/stream_set.h"

namespace millrace {

// ModelStreamInfer's part of an InferenceStream.
class OpenInferenceStreaming {
 public:
  using Request = inference::ModelInferRequest;
  using Response = inference::ModelStreamInferResponse;

  // The catalog must outlive it.
  explicit OpenInferenceStreaming(const OpenInferenceCatalog& catalog) : catalog_(&catalog) {}

  absl::StatusOr<InferenceQuestion> Ask(const Request& request, absl::Time now, absl::Time deadline);
  void Fill(const Request& request, const ModelInfo& info, const InferenceAnswer& answer, Response* response);
  void FillFault(const Request& request, const absl::Status& fault, Response* response);

 private:
  const OpenInferenceCatalog* catalog_;
  OpenInference inference_;
};

// Any thread: handlers run on gRPC's, of which there are few, and do not wait; a ModelInfer ends on whatever thread
// computed it. The references must outlive the service.
class OpenInferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  // `clock`: the engine's. `operators`: who may load and unload models.
  OpenInferenceService(const OpenInferenceCatalog& catalog, InferenceEngine& engine, const Clock& clock,
                       RepositoryControl& control, OperatorCheck operators)
      : catalog_(catalog), engine_(engine), clock_(clock), control_(control), operators_(std::move(operators)) {}

  // Ends the streams, each after the request that is being answered; new ones are UNAVAILABLE.
  void Drain() { streams_.Drain(); }

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override;
  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ModelConfig(grpc::CallbackServerContext* context,
                                        const inference::ModelConfigRequest* request,
                                        inference::ModelConfigResponse* response) override;
  grpc::ServerUnaryReactor* ModelStatistics(grpc::CallbackServerContext* context,
                                            const inference::ModelStatisticsRequest* request,
                                            inference::ModelStatisticsResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelLoad(grpc::CallbackServerContext* context,
                                                const inference::RepositoryModelLoadRequest* request,
                                                inference::RepositoryModelLoadResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelUnload(grpc::CallbackServerContext* context,
                                                  const inference::RepositoryModelUnloadRequest* request,
                                                  inference::RepositoryModelUnloadResponse* response) override;

 private:
  const OpenInferenceCatalog& catalog_;
  InferenceEngine& engine_;
  const Clock& clock_;
  RepositoryControl& control_;
  const OperatorCheck operators_;
  StreamSet<InferenceStream<OpenInferenceStreaming>> streams_;
};

}  // namespace millrace
