#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Waits become visible only when they last, so that the ordinary short ones do not flicker. Not thread-safe.
class WaitTracker {
 public:
  // `waiting_for` is empty when nothing is waited for; `progress` is any number that changes when things move.
  // Returns true once the job has waited for more than a second without a change of `progress`.
  bool Update(absl::Time now, absl::string_view waiting_for, uint64_t progress);

 private:
  std::optional<uint64_t> progress_;
  absl::Time since_ = absl::InfiniteFuture();
};

// Notices from its status that the job went back to a checkpoint, whichever part was lost: the coordinator that comes
// back knows nothing of the one before it. Not thread-safe.
class RecoveryTracker {
 public:
  // One line once the first step after a recovery is there: what happened, and for how long no step was made.
  std::optional<std::string> Update(absl::Time now, const v1::JobStatus& status);

  int count() const { return count_; }
  double seconds() const { return seconds_; }  // of all

 private:
  uint64_t run_id_ = 0;
  uint64_t version_ = 0;
  absl::Time reached_;               // when version_ was seen first
  std::optional<absl::Time> since_;  // of the recovery that is going on
  uint64_t from_ = 0;                // the version before it
  int count_ = 0;
  double seconds_ = 0;
};

// One live line on a terminal; elsewhere a plain line per epoch and one every few seconds. All output of a run goes
// through it, so that the live line is never torn. Not thread-safe.
class ProgressReporter {
 public:
  // `stream` must outlive the reporter. `terminal` says whether the live line may be rewritten.
  ProgressReporter(std::FILE* stream, bool terminal, const Clock& clock);
  ~ProgressReporter();

  // Call a few times a second.
  void Update(const v1::JobStatus& status);

  const RecoveryTracker& recoveries() const { return recoveries_; }

  // Before there is a job to speak of: what the start of the cluster waits for.
  void Waiting(absl::string_view what);

  // The live line, or every few seconds a plain one.
  void Live(const std::string& line);

  // A line that stays.
  void Print(absl::string_view line);

 private:
  size_t Columns() const;

  std::FILE* const stream_;
  const bool terminal_;
  const Clock& clock_;
  WaitTracker waits_;
  RecoveryTracker recoveries_;
  bool live_line_shown_ = false;
  absl::Time next_plain_line_;
  int evaluations_shown_ = 0;
  bool checkpoint_error_shown_ = false;
  bool stopped_early_shown_ = false;
  std::string waiting_for_;  // of Waiting()
  absl::Time waiting_since_;
};

}  // namespace millrace
