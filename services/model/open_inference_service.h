// GRPCInferenceService (proto/inference/grpc_service.proto) over the catalog and the inference engine: translation
// only.
#pragma once

#include <memory>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "inference/grpc_service.grpc.pb.h"
#include "services/model/inference_engine.h"
#include "services/model/inference_stream.h"
#include "services/model/open_inference_catalog.h"

namespace millrace {

// Any thread: handlers run on gRPC's, of which there are few, and do not wait; a ModelInfer ends on whatever thread
// computed it. The references must outlive the service.
class OpenInferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  static constexpr size_t kStreamsMax = 256;  // at once; more are RESOURCE_EXHAUSTED

  // `clock`: the engine's.
  OpenInferenceService(const OpenInferenceCatalog& catalog, InferenceEngine& engine, const Clock& clock)
      : catalog_(catalog), engine_(engine), clock_(clock) {}

  // Ends the streams, each after the request that is being answered; new ones are UNAVAILABLE.
  void Drain();

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
  void Remove(InferenceStream* stream);

  const OpenInferenceCatalog& catalog_;
  InferenceEngine& engine_;
  const Clock& clock_;

  Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_map<InferenceStream*, std::shared_ptr<InferenceStream>> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
