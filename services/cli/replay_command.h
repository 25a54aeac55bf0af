#pragma once

#include <cstdint>
#include <string>

#include "services/cli/checkpoint_records.h"

namespace CLI {
class App;
}

namespace millrace {

struct ReplayOptions {
  std::string out{};  // of the job
  uint64_t step = 0;
  uint32_t slot = 0;
  std::string data_dir{};  // empty: what the job used
  uint32_t workers = 2;
  std::string json{};     // empty: no JSON
  std::string bin_dir{};  // empty: where this program lies
};

inline constexpr int kExitNotReplayed = 69;  // EX_UNAVAILABLE: the replay itself failed, which says nothing of the job

void AddReplayFlags(CLI::App& app, ReplayOptions& options);

// Makes one step of a job again and compares what its slots come to with what was recorded when the job ran: resumes
// the job, in a directory of its own, from its newest checkpoint up to the step, with the programs that trained it.
// Nothing in the job's directory is written, and it may be running. Prints how the slot and all others on the way came
// out.
//
// Returns the exit code: kExitOk if all are equal; kExitFailure if any differs; kExitUsage for a step or slot that the
// job has no record of; kExitBadConfiguration for a directory without a job, a job that is not reproducible, a damaged
// record, another dataset; kExitNotReplayed if the cluster could not do it; kExitInterrupted.
int RunReplay(const ReplayOptions& options);

// --- For RunReplay, and its tests ---

struct ReplayResult {
  uint64_t step = 0;
  uint32_t slot = 0;
  uint64_t start_version = 0;
  uint64_t recorded = 0;  // checksum of the slot
  uint64_t recomputed = 0;
  SlotComparison comparison{};  // of all slots from start_version to the step
  bool other_fingerprint = false;

  bool equal() const { return comparison.differences == 0; }
};
std::string FormatReplay(const ReplayResult& result);
std::string ReplayJson(const ReplayResult& result);

}  // namespace millrace
