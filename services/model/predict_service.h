// ModelService (proto/millrace/v1/model.proto) over the serving table and the inference engine: translation only.
#pragma once

#include "millrace/v1/model.grpc.pb.h"
#include "services/model/inference_engine.h"
#include "services/model/serving_table.h"

namespace millrace {

// Any thread: handlers run on gRPC's. The references must outlive the service.
class PredictService final : public v1::ModelService::Service {
 public:
  PredictService(const ServingTable& table, InferenceEngine& engine) : table_(table), engine_(engine) {}

  grpc::Status Predict(grpc::ServerContext* context, const v1::PredictRequest* request,
                       v1::PredictResponse* response) override;
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;

 private:
  const ServingTable& table_;
  InferenceEngine& engine_;
};

}  // namespace millrace
