#include "services/model/inference_call.h"

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "services/model/retry_hint.h"

namespace millrace {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + (absl::FromChrono(deadline) - absl::Now());
}

void InferenceCall::Start(InferenceEngine& engine, std::shared_ptr<const LoadedVersion> version,
                          InferenceRequest request,
                          std::function<void(const ModelInfo&, const InferenceAnswer&)> fill) {
  engine_ = &engine;
  request.peer = [context = context_] { return std::string(context->peer()); };
  const ModelInfo* info = &version->info();  // the engine holds the version until the answer
  ticket_ = engine.Infer(std::move(version), request,
                         [this, info, fill = std::move(fill)](const absl::StatusOr<InferenceAnswer>& answer) {
                           if (!answer.ok()) return End(answer.status());
                           fill(*info, *answer);
                           Finish(grpc::Status::OK);
                         });
}

void InferenceCall::End(const absl::Status& status) {
  if (const std::optional<absl::Duration> retry_after = RetryAfter(status)) {
    // What gRPC's own retries obey (gRFC A6, "server pushback").
    context_->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(absl::ToInt64Milliseconds(*retry_after)));
  }
  Finish(ToGrpcStatus(status));
}

void InferenceCall::OnCancel() {
  if (engine_ != nullptr) engine_->Cancel(ticket_);
}

}  // namespace millrace
