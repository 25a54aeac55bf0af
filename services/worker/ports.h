// What the step loop needs from the outside. The real ones speak gRPC (coordinator_client.h, batch_feed.h,
// parameter_client.h); tests put fakes here.
//
// Threads: the loop calls all of these from its one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/aligned_buffer.h"
#include "common/batch_key.h"
#include "common/tensor/slot_tree.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// Every wait calls this at least once a second with one line that says for what, e.g. "weights 813 from shard 0". An
// error ends the wait with that error.
using WaitCallback = absl::FunctionRef<absl::Status(std::string_view what)>;

// The coordinator's side: duties in, results out.
class LeaseLink {
 public:
  using Event = std::variant<v1::Lease, v1::Finish>;

  virtual ~LeaseLink() = default;
  // The next event, in the order in which the coordinator sent them; nullopt after `timeout`. UNAVAILABLE once the link
  // is lost, ABORTED once the coordinator has sent the worker away for good.
  virtual absl::StatusOr<std::optional<Event>> Next(absl::Duration timeout) = 0;
  // Sent as far as the link allows; what is lost with the link is granted again by the coordinator.
  virtual void Report(const v1::Report& report) = 0;
  // `weights_gone`: the shards cannot give the lease's version any more.
  virtual void Decline(uint64_t lease_id, std::string_view reason, bool weights_gone) = 0;
  virtual void Leave() = 0;
};

// The batches of units of work: a slot of a train step, or an evaluation batch.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Asks for the batches of all `keys`, to be got later in any order. Does not wait.
  virtual void Prefetch(const std::vector<BatchKey>& keys) = 0;
  // A batch asked for earlier, once; its checksum is verified.
  virtual absl::StatusOr<v1::Batch> Get(const BatchKey& key, WaitCallback wait) = 0;
  // Batches asked for that nobody will get.
  virtual void Forget(const std::vector<BatchKey>& keys) = 0;
};

// The summed gradient of an aligned subtree of one step's slots.
struct GradientPush {
  uint64_t step = 0;
  SlotNode slots;
  uint64_t samples = 0;  // of the whole step
  uint64_t weights_version = 0;  // on which it was computed
  // The whole flat vector. Not written to while anybody else holds a reference.
  std::shared_ptr<const AlignedBuffer<float>> gradient;
};

class ParameterLink {
 public:
  enum class Weights {
    kReady,      // the flat parameter vector holds the version, whole
    kMovedPast,  // a shard does not have the version any more; the vector is of no use for this one
  };

  virtual ~ParameterLink() = default;
  // UNAVAILABLE if a shard belongs to another run: only a new session with the coordinator can help.
  virtual absl::StatusOr<Weights> AwaitVersion(uint64_t version, WaitCallback wait) = 0;
  // For unbounded staleness: waits until every shard's range holds `version` or a newer one, each whole but not all the
  // same, and returns the oldest of them. UNAVAILABLE as above.
  virtual absl::StatusOr<uint64_t> AwaitNewest(uint64_t version, WaitCallback wait) = 0;
  // Returns when every shard has acknowledged the gradient.
  virtual absl::Status Push(const GradientPush& push, WaitCallback wait) = 0;
};

}  // namespace millrace
