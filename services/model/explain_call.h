// One gRPC call of ModelService.Explain: translation only.
#pragma once

#include "common/clock.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "millrace/v1/model.pb.h"
#include "services/model/explainer.h"
#include "services/model/serving_table.h"

namespace millrace {

// What the handler returns. The references, `clock` the explainer's, must outlive the call.
grpc::ServerUnaryReactor* StartExplainCall(grpc::CallbackServerContext* context, const v1::ExplainRequest& request,
                                           v1::ExplainResponse* response, const ServingTable& table,
                                           Explainer& explainer, const Clock& clock);

}  // namespace millrace
