// Decides who computes with whom, and when. It knows neither gRPC nor threads nor tensors: requests in, batches out.
//
// Work-conserving: while an executor is free, what waits is given to it at once, however little that is; requests
// gather only while all executors are busy. So there is no timer to tune and nobody waits for company. The earliest
// deadline goes first (as in Clipper), rows are counted rather than requests, and a request of many rows is spread over
// several batches. What by the running estimate of service times cannot be done in time is refused when it comes, and a
// batch takes no more rows than let its first request be done in time, if it can be at all.
//
// Invariants: executors busy, rows and bytes of a batch, and requests, rows and bytes waiting are within the limits;
// every row admitted is given out once, or its request is closed.
//
// Threads: none of its own; guard it from outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "services/model/service_time.h"

namespace millrace {

// Requests that may share a batch: those of one version which are computed in the same way. A lane must live as long as
// any of its requests is open or its batches run.
struct Lane {
  ServiceTime time;
};

class Batcher {
 public:
  using Id = uint64_t;

  struct Limits {
    int executors = 1;  // batches at once
    uint32_t batch_rows = 32;
    uint64_t batch_bytes = uint64_t{8} << 20;  // a single row may be larger, and then goes alone
    uint32_t requests = 128;                   // open: waiting or running
    uint64_t waiting_rows = 1 << 16;
    uint64_t waiting_bytes = uint64_t{256} << 20;
  };

  struct Request {
    Id id = 0;  // of no other open request
    Lane* lane = nullptr;
    uint32_t rows = 1;       // at least 1
    uint64_t row_bytes = 0;  // each
    absl::Time deadline;
  };

  struct Refusal {
    enum class Reason { kRequests, kRows, kBytes, kLate };
    Reason reason;
    absl::Duration retry_after;  // when, by the estimate, it would have fitted
  };
  static constexpr size_t kReasons = static_cast<size_t>(Refusal::Reason::kLate) + 1;

  // Rows [first_row, first_row + rows) of a request.
  struct Slice {
    Id id = 0;
    uint32_t first_row = 0;
    uint32_t rows = 0;
  };

  enum class Release {
    kIdleExecutor,   // one was free when the request came
    kFreedExecutor,  // all that waited, when one became free
    kRowsLimit,
    kBytesLimit,
    kDeadline,  // one row more would have made the first request late
  };
  static constexpr size_t kReleases = static_cast<size_t>(Release::kDeadline) + 1;

  struct Batch {
    uint64_t number = 0;
    Lane* lane = nullptr;
    std::vector<Slice> slices;  // by deadline
    uint32_t rows = 0;
    Release release = Release::kIdleExecutor;
  };

  struct Decision {
    std::vector<Id> expired;  // their deadline passed with rows waiting; no longer open
    std::optional<Batch> batch;
  };

  explicit Batcher(const Limits& limits) : limits_(limits) {}

  // Opens the request, unless it is refused. A request that would run at once is never refused for its estimate, which
  // could not be put right otherwise.
  std::optional<Refusal> Admit(const Request& request, absl::Time now);
  // The next batch, if an executor is free and something waits. The caller runs it, says Finish, and has the lane's
  // time observe what it took.
  Decision Next(absl::Time now);
  // The batch no longer holds its executor.
  void Finish(const Batch& batch);
  // The request is answered, or nobody wants it any more: rows that wait are dropped. No effect if it is not open.
  void Close(Id id);
  // The request ends here, before Close: in time, or late, as its client had given up when its answer was there. If it
  // is open and was admitted by an estimate, with a second of time at most, the margin that later ones must leave grows
  // or shrinks, so that about one in two hundred is late.
  void ObserveEnd(Id id, bool late);

  bool HasWork() const { return !lanes_.empty() && HasFreeExecutor(); }
  // Whether a request that comes now is computed at once.
  bool idle() const { return lanes_.empty() && HasFreeExecutor(); }
  int running() const { return static_cast<int>(running_.size()); }
  size_t open() const { return open_.size(); }
  uint64_t waiting_rows() const { return waiting_rows_; }

 private:
  using Key = std::pair<absl::Time, uint64_t>;  // deadline, arrival
  struct Waiting {
    Request request;
    absl::Time latest;  // when it should be done: its deadline, less half of the margin
    uint32_t next_row = 0;
    bool met_free_executor = false;

    uint32_t rows() const { return request.rows - next_row; }
    uint64_t bytes() const { return rows() * request.row_bytes; }
  };
  using Queue = std::map<Key, Waiting>;
  struct Place {
    Lane* lane = nullptr;
    Key key;
    bool telling = false;  // of the margin: it was admitted by an estimate, with little time
  };

  bool HasFreeExecutor() const { return running_.size() < static_cast<size_t>(limits_.executors); }
  // What a request that comes now must be predicted to have left of its time.
  absl::Duration MarginOf(const Request& request, absl::Time now) const;
  std::optional<Refusal> OverLimit(const Request& request, absl::Time now) const;
  // When a request of this lane and deadline would be done, given what goes before it.
  absl::Time PredictFinish(const Request& request, absl::Time now) const;
  absl::Duration TimeForWaiting() const;
  void DropExpired(absl::Time now, std::vector<Id>& expired);
  Queue* EarliestQueue(Lane** lane);
  Batch Fill(Lane* lane, Queue& queue, absl::Time now);
  void Forget(const Waiting& waiting);
  void Learn(const Place& place, bool late);

  const Limits limits_;
  std::map<Lane*, Queue> lanes_;            // none empty
  std::unordered_map<Id, Place> open_;      // of one whose rows are all given out the lane is null
  std::map<uint64_t, absl::Time> running_;  // by batch number: when it should be done
  uint64_t waiting_rows_ = 0;
  uint64_t waiting_bytes_ = 0;
  absl::Duration late_margin_;  // what was learnt of late ones
  uint64_t arrivals_ = 0;
  uint64_t batches_ = 0;
};

// "queue_requests", "queue_rows", "queue_bytes", "late".
std::string_view Name(Batcher::Refusal::Reason reason);
// "idle_executor", "freed_executor", "rows_limit", "bytes_limit", "deadline".
std::string_view Name(Batcher::Release release);

}  // namespace millrace
