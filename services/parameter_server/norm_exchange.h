// How the shards of a job add up the norm of a step's gradient before any of them applies the step. Only jobs that clip
// gradients need it: without clipping, shards do not talk to each other.
//
// Shard 0 is where the parts meet (NormRendezvous), the others ask there (norm_client.h). A part is a pure function of
// (job, step, shard), so that it may be sent as often as it takes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "services/parameter_server/gradient_norm.h"

namespace millrace {

class NormExchange {
 public:
  using Done = std::function<void(const SquaredNorm& total)>;
  using Answer = std::function<void(const absl::StatusOr<SquaredNorm>& total)>;

  virtual ~NormExchange() = default;

  // Adds this shard's part to those of the others. `done` is called when all have come, on any thread, perhaps before
  // this returns. One step at a time, in order.
  virtual void Sum(uint64_t step, const SquaredNorm& part, Done done) = 0;

  // The part of another shard has come. `answer` is called once, on any thread, perhaps before this returns:
  // FAILED_PRECONDITION for a step that is not at hand or a shard that does not meet others; DATA_LOSS for a part that
  // differs from the one the same shard sent before; ABORTED if that shard asked again; CANCELLED after Cancel.
  virtual void Receive(uint32_t shard, uint64_t step, const SquaredNorm& part, Answer answer);

  // Gives up what is waited for. A call of `done` that has begun may go on meanwhile.
  virtual void Cancel() = 0;

  // "the norm of shard 2"; empty if nothing is waited for.
  virtual std::string WaitingFor() const = 0;
};

// The exchange of shard 0, where all parts meet. Threads: any.
class NormRendezvous final : public NormExchange {
 public:
  explicit NormRendezvous(uint32_t num_shards) : num_shards_(num_shards) {}

  void Sum(uint64_t step, const SquaredNorm& part, Done done) override;
  void Receive(uint32_t shard, uint64_t step, const SquaredNorm& part, Answer answer) override;
  void Cancel() override;
  std::string WaitingFor() const override;

 private:
  struct Part {
    SquaredNorm norm;
    Answer answer;
  };

  const uint32_t num_shards_;
  mutable Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t step_ ABSL_GUARDED_BY(mutex_) = 0;               // of parts_, if there are any
  std::map<uint32_t, Part> parts_ ABSL_GUARDED_BY(mutex_);  // by shard
  // The last step that was complete: a shard whose answer was lost asks for it again. No shard can need an older one,
  // since the last step took the part of every shard.
  std::optional<std::pair<uint64_t, SquaredNorm>> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
