// ModelService (proto/millrace/v1/model.proto) over the serving table and the inference engine: translation only.
#pragma once

#include "common/clock.h"
#include "millrace/v1/model.grpc.pb.h"
#include "services/model/explainer.h"
#include "services/model/inference_engine.h"
#include "services/model/inference_stream.h"
#include "services/model/serving_table.h"
#include "services/model/stream_set.h"
#include "services/model/version_watcher.h"

namespace millrace {

// PredictStream's part of an InferenceStream.
class PredictStreaming {
 public:
  using Request = v1::PredictStreamRequest;
  using Response = v1::PredictStreamResponse;

  // The table must outlive it.
  explicit PredictStreaming(const ServingTable& table) : table_(&table) {}

  absl::StatusOr<InferenceQuestion> Ask(const Request& request, absl::Time now, absl::Time deadline) const;
  void Fill(const Request& request, const ModelInfo& info, const InferenceAnswer& answer, Response* response) const;
  void FillFault(const Request& request, const absl::Status& fault, Response* response) const;

 private:
  const ServingTable* table_;
};

// Any thread: handlers run on gRPC's, of which there are few, and do not wait; a Predict ends on whatever thread
// computed it. The references must outlive the service.
class PredictService final : public v1::ModelService::CallbackService {
 public:
  // `clock`: the engine's and the explainer's.
  PredictService(const ServingTable& table, InferenceEngine& engine, Explainer& explainer, const Clock& clock)
      : table_(table), engine_(engine), explainer_(explainer), clock_(clock) {}

  grpc::ServerUnaryReactor* Predict(grpc::CallbackServerContext* context, const v1::PredictRequest* request,
                                    v1::PredictResponse* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context, const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

  grpc::ServerWriteReactor<v1::WatchVersionsResponse>* WatchVersions(grpc::CallbackServerContext* context,
                                                                     const v1::WatchVersionsRequest* request) override;
  grpc::ServerBidiReactor<v1::PredictStreamRequest, v1::PredictStreamResponse>* PredictStream(
      grpc::CallbackServerContext* context) override;

  // Tells those who watch that the table has changed.
  void VersionsChanged();
  // Ends the streams, each after the request or list in hand; new ones are UNAVAILABLE.
  void Drain();

 private:
  const ServingTable& table_;
  InferenceEngine& engine_;
  Explainer& explainer_;
  const Clock& clock_;
  StreamSet<VersionWatcher> watchers_;
  StreamSet<InferenceStream<PredictStreaming>> streams_;
};

}  // namespace millrace
