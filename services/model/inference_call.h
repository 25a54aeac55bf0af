// One unary gRPC call that the engine answers, whatever its messages.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "services/model/inference_engine.h"

namespace millrace {

// On the engine's clock, which need not be the wall's.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock);

// Made by a handler, which calls Start or End once and returns it. gRPC deletes it when the call has ended and the
// handler has returned.
class InferenceCall final : public grpc::ServerUnaryReactor {
 public:
  explicit InferenceCall(grpc::CallbackServerContext* context) : context_(context) {}

  // `fill` writes the response if there is an answer; on any thread.
  void Start(InferenceEngine& engine, std::shared_ptr<const LoadedVersion> version, InferenceRequest request,
             std::function<void(const ModelInfo&, const InferenceAnswer&)> fill);
  // With an error and, if it has a retry hint, that.
  void End(const absl::Status& status);

 private:
  // Never before the handler, and with it Start, has returned.
  void OnCancel() override;
  void OnDone() override { delete this; }

  grpc::CallbackServerContext* const context_;
  InferenceEngine* engine_ = nullptr;
  InferenceEngine::Ticket ticket_ = 0;
};

}  // namespace millrace
