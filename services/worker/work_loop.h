// The worker's step loop: takes leases in the order in which the job needs them, and for each waits for its batches and
// for its weights version, computes, pushes, reports.
//
// What it never does: compute on other weights than the lease's, report a train lease before every shard holds its
// gradient, or wait without saying for what. A lease whose version has passed is declined.
//
// Threads: Run on one thread, once; Drain and Stop on any.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/trainable_model.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/worker/activity.h"
#include "services/worker/epoch_ahead.h"
#include "services/worker/gradient_sum.h"
#include "services/worker/ports.h"
#include "services/worker/worker_metrics.h"

namespace millrace {

class WorkLoop {
 public:
  enum class End {
    kFinished,  // the coordinator says that the job is done
    kDrained,   // Drain was called; no lease is held
  };

  // Everything pointed to must outlive the loop. The model's parameters are what the parameter link writes to.
  struct Parts {
    TrainableModel* model;
    LeaseLink* leases;
    BatchSource* batches;
    ParameterLink* parameters;
    Activity* activity;
    const WorkerMetrics* metrics;
  };

  // What a slot's gradient is computed with. Dropout and its like must depend on what is computed, never on who
  // computes it or when. `seed` is the job's.
  static uint64_t NoiseSeed(uint64_t seed, uint64_t step, uint32_t slot);

  WorkLoop(const v1::JobPlan& plan, const Parts& parts);

  // ABORTED if the job failed or the coordinator sent the worker away (message: its reason), UNAVAILABLE if the
  // link to the coordinator was lost, CANCELLED after Stop, otherwise what a link or the model returned; leases still
  // held are the coordinator's to grant again then.
  absl::StatusOr<End> Run();

  // Takes no more leases: the one being computed is finished, the others are declined, then Run returns kDrained.
  void Drain() { draining_ = true; }
  // Ends the next wait. For when a drain takes too long.
  void Stop() { stopped_ = true; }

 private:
  struct Times {
    double data = 0, weights = 0, compute = 0, push = 0;  // seconds
  };
  class Stopwatch;

  absl::StatusOr<End> RunUntilEnd();
  // Moves what has arrived into pending_; waits up to `timeout` for the first of it.
  absl::Status TakeEvents(absl::Duration timeout);
  absl::Status Accept(const v1::Lease& lease);
  std::vector<BatchKey> UnitsOf(const v1::Lease& lease) const;
  void DeclineAll(std::string_view reason);
  void Decline(const v1::Lease& lease, std::string_view reason, bool weights_gone);

  absl::Status Process(const v1::Lease& lease);
  // The version that the parameters hold; nullopt if the lease's is gone.
  absl::StatusOr<std::optional<uint64_t>> AwaitWeights(const v1::Lease& lease);
  absl::Status ComputeUnit(const v1::Lease& lease, const BatchKey& unit, v1::Batch batch, v1::Report& report,
                           uint64_t& step_samples);
  absl::Status PushGradient(const v1::Lease& lease, uint64_t step_samples, uint64_t weights_version);
  // What every wait calls; during the wait for weights, `interruptible`, also leases are looked at.
  absl::Status Waiting(std::string_view what, bool interruptible);

  const v1::JobPlan plan_;
  const Parts parts_;
  GradientSum sum_;
  EpochAhead ahead_;
  std::vector<v1::Lease> pending_;  // in the order of computation; the front may be in progress
  bool outranked_ = false;          // a lease that must be computed first has arrived
  bool finished_ = false;
  std::atomic<bool> draining_ = false;
  std::atomic<bool> stopped_ = false;
};

}  // namespace millrace
