// How many leases a second the coordinator's ledger grants and takes in, by the number of workers: no network, no
// computation, every worker reports at once. Prints one JSON line.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/parameter_server/ledger.h"

namespace millrace {
namespace {

constexpr uint32_t kSamplesPerSlot = 32;
constexpr auto kRunTime = std::chrono::seconds(2);

// At least as many slots as workers, so that every worker has one of every step; a power of two, so that with 1,000
// workers some slots of every step are nobody's share: the ledger has free work then that nobody may take yet.
v1::JobPlan PlanFor(uint32_t workers) {
  const uint32_t slots = std::max(4u, std::bit_ceil(workers));
  v1::JobPlan plan;
  plan.mutable_spec()->set_slots(slots);
  plan.mutable_spec()->set_batch_size(slots * kSamplesPerSlot);
  plan.mutable_spec()->set_epochs(1);
  plan.mutable_spec()->set_evaluation_batch_size(500);
  plan.set_steps_per_epoch(10'000'000);
  plan.set_total_steps(plan.steps_per_epoch());
  plan.mutable_dataset()->set_train_count(plan.steps_per_epoch() * plan.spec().batch_size());
  return plan;
}

double LeasesPerSecond(uint32_t workers) {
  const v1::JobPlan plan = PlanFor(workers);
  Ledger ledger(plan);
  std::deque<LedgerActions::Grant> held;  // in the order in which they are computed
  absl::Time now = absl::UnixEpoch();
  const auto take = [&](LedgerActions actions) {
    for (LedgerActions::Grant& grant : actions.grants) held.push_back(std::move(grant));
  };
  for (uint32_t worker = 1; worker <= workers; ++worker) {
    take(ledger.WorkerJoined(worker, absl::StrCat("worker-", worker), now));
  }
  uint64_t leases = 0;
  v1::Report report;
  const auto begin = std::chrono::steady_clock::now(), end = begin + kRunTime;
  while (std::chrono::steady_clock::now() < end) {
    const LedgerActions::Grant grant = std::move(held.front());
    held.pop_front();
    report.Clear();
    report.set_lease_id(grant.lease.id());
    for (uint32_t unit = grant.lease.begin(); unit < grant.lease.end(); ++unit) {
      v1::UnitResult& result = *report.add_results();
      result.set_unit(unit);
      result.set_samples(kSamplesPerSlot);
    }
    now += absl::Microseconds(10);
    take(ledger.Reported(grant.worker, report, now));
    ++leases;
  }
  return static_cast<double>(leases) / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace
}  // namespace millrace

int main() {
  std::printf("{");
  const char* separator = "";
  for (const uint32_t workers : {1u, 8u, 64u, 1000u}) {
    std::printf("%s\"%u\": %.0f", separator, workers, millrace::LeasesPerSecond(workers));
    separator = ", ";
  }
  std::printf("}\n");
}
