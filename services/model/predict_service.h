// ModelService (proto/millrace/v1/model.proto) over the serving table and the inference engine: translation only.
#pragma once

#include "common/clock.h"
#include "millrace/v1/model.grpc.pb.h"
#include "services/model/explainer.h"
#include "services/model/inference_engine.h"
#include "services/model/serving_table.h"

namespace millrace {

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

 private:
  const ServingTable& table_;
  InferenceEngine& engine_;
  Explainer& explainer_;
  const Clock& clock_;
};

}  // namespace millrace
