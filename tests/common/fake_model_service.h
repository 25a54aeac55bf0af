#pragma once

#include <atomic>
#include <memory>

#include "absl/synchronization/notification.h"
#include "millrace/v1/model.grpc.pb.h"

namespace millrace {

// A gRPC service to try servers and channels on. Predict echoes `rows` as the version and `raw` as the
// digest, after waiting for `release`
// where the model is called "slow"; a call that was cancelled while it waited answers CANCELLED.
class FakeModelService : public v1::ModelService::Service {
 public:
  grpc::Status Predict(grpc::ServerContext* context, const v1::PredictRequest* request,
                       v1::PredictResponse* response) override {
    ++calls;
    response->set_version(request->rows());
    response->set_digest(request->raw());
    if (request->model() == "missing") return grpc::Status(grpc::StatusCode::NOT_FOUND, "no model 'missing'");
    if (request->model() == "slow") {
      while (!release.WaitForNotificationWithTimeout(absl::Milliseconds(5))) {
        if (context->IsCancelled()) return grpc::Status::CANCELLED;
      }
    }
    return grpc::Status::OK;
  }

  std::atomic<int> calls = 0;
  absl::Notification release;
};

// The same through gRPC's callback API, which other services use: answers at once.
class FakeCallbackModelService : public v1::ModelService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Predict(grpc::CallbackServerContext* context, const v1::PredictRequest* request,
                                    v1::PredictResponse* response) override {
    response->set_version(request->rows());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(request->model() == "missing" ? grpc::Status(grpc::StatusCode::NOT_FOUND, "") : grpc::Status::OK);
    return reactor;
  }
};

}  // namespace millrace
