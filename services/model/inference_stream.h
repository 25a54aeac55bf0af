#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "inference/grpc_service.pb.h"
#include "services/model/inference_engine.h"
#include "services/model/open_inference.h"
#include "services/model/open_inference_catalog.h"

namespace millrace {

// One ModelStreamInfer call: one request at a time is read, computed and answered, so that a client which does not read
// costs one answer of memory. A request's fault is its answer; the stream goes on.
//
// Threads: gRPC's and the engine's. Nothing blocks.
class InferenceStream final
    : public grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse> {
 public:
  // `deadline`: the call's, on the engine's clock. `closed` is called once, last of all: the stream may be destroyed in
  // it. The references must outlive the stream.
  InferenceStream(const OpenInferenceCatalog& catalog, InferenceEngine& engine, const Clock& clock, absl::Time deadline,
                  std::function<void(InferenceStream*)> closed);

  void Begin() { StartRead(&message_); }
  // Ends the call with `status` after the request that is being answered, if there is one. Repeats do nothing.
  void End(const absl::Status& status);

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Asks the engine, or says why not.
  absl::Status Ask(uint64_t turn);
  void Answer(uint64_t turn, const absl::Status& fault);
  void FinishIfDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const OpenInferenceCatalog& catalog_;
  InferenceEngine& engine_;
  const Clock& clock_;
  const absl::Time deadline_;
  const std::function<void(InferenceStream*)> closed_;

  // Of the request being answered, and whoever answers it; else of the read in progress.
  inference::ModelInferRequest message_;
  OpenInference inference_;
  inference::ModelStreamInferResponse response_;

  Mutex mutex_;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;      // requests read
  uint64_t answered_ ABSL_GUARDED_BY(mutex_) = 0;  // the last turn whose answer is known
  InferenceEngine::Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // from a read to the end of its answer's write
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;            // Finish was called: no operation may be started
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // what the call is to end with
};

}  // namespace millrace
