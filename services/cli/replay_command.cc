#include "services/cli/replay_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/job_status_client.h"
#include "services/cli/local_cluster.h"
#include "services/cli/output_directory.h"
#include "services/cli/progress.h"
#include "services/cli/replay_plan.h"
#include "services/cli/service_process.h"
#include "services/cli/train_command.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr absl::Duration kStatusInterval = absl::Milliseconds(250);
constexpr int kLogLines = 20;  // of the replay, in which to look for why it ended
// None may be pruned before it is read.
constexpr char kKeepCheckpoints[] = "1000000";

std::string HexOf(uint64_t checksum) { return absl::StrCat(absl::Hex(checksum, absl::kZeroPad16)); }

std::string Describe(const RunFingerprint& fingerprint) {
  return absl::StrCat("LibTorch ", fingerprint.torch_version, ", ", fingerprint.cpu_capability, ", ",
                      fingerprint.threads, fingerprint.threads == 1 ? " thread" : " threads", ", ", fingerprint.device);
}

class Replay {
 public:
  Replay(const ReplayOptions& options, ShutdownSignals& signals, PrivateDirectory scratch, ReplayPlan plan)
      : options_(options),
        signals_(signals),
        scratch_(std::move(scratch)),
        plan_(std::move(plan)),
        log_((scratch_.path() / "replay.log").string()),
        reporter_(stderr, isatty(STDERR_FILENO) != 0, RealClock()) {}

  absl::StatusOr<ReplayResult> Run() {
    reporter_.Print(absl::StrCat("replaying ", options_.out, " from ",
                                 plan_.start_version == 0
                                     ? "its beginning"
                                     : absl::StrCat("the checkpoint of version ", FormatCount(plan_.start_version)),
                                 " to step ", FormatCount(options_.step)));
    MILLRACE_RETURN_IF_ERROR(CopyJob());
    MILLRACE_RETURN_IF_ERROR(Train());
    const std::vector<CheckpointRecord> records = ReadCheckpointRecords(scratch_.path());
    if (records.empty()) return absl::InternalError("the replay left no checkpoint");
    MILLRACE_RETURN_IF_ERROR(CheckDataset(records.back().plan.dataset()));
    const StepChecksums recomputed = MergeChecksums(records);
    ReplayResult result{.step = options_.step, .slot = options_.slot, .start_version = plan_.start_version};
    result.comparison = CompareSlots(plan_.recorded, recomputed);
    if (result.comparison.steps != plan_.recorded.size()) {
      return absl::InternalError(
          absl::StrCat("the replay has recorded ", result.comparison.steps, " of ", plan_.recorded.size(), " steps"));
    }
    result.recorded = plan_.recorded.at(options_.step).at(options_.slot);
    result.recomputed = recomputed.at(options_.step).at(options_.slot);
    result.other_fingerprint = records.back().fingerprint != plan_.recorded_under;
    if (result.other_fingerprint) {
      reporter_.Print(absl::StrCat("REPLAYED UNDER ANOTHER FINGERPRINT (", Describe(records.back().fingerprint),
                                   ") than was recorded (", Describe(plan_.recorded_under),
                                   "): the bits may differ for that reason alone"));
    }
    return result;
  }

 private:
  // What `millrace train --resume` needs to go on in the scratch directory as it would in the job's.
  absl::Status CopyJob() {
    MILLRACE_ASSIGN_OR_RETURN(const OutputDirectory output,
                              OutputDirectory::Open(scratch_.path(), "", /*resume=*/true));
    MILLRACE_RETURN_IF_ERROR(output.WriteJob(plan_.spec));
    absl::StatusOr<ClusterRecord> cluster = ReadClusterRecord(options_.out);
    if (cluster.ok()) {
      cluster->coordinator.clear();
      cluster->model.clear();
      MILLRACE_RETURN_IF_ERROR(WriteClusterRecord(scratch_.path(), *cluster));
    } else if (!absl::IsNotFound(cluster.status())) {
      return cluster.status();
    }
    if (plan_.start_version == 0) return absl::OkStatus();
    // Copied, not linked: a scratch run prunes, and the job may.
    const fs::path from = CheckpointDirectory(options_.out, plan_.start_version);
    const fs::path to = CheckpointDirectory(scratch_.path(), plan_.start_version);
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(to));
    std::error_code error;
    fs::copy(from, to, error);
    if (!error) return absl::OkStatus();
    return absl::Status(absl::ErrnoToStatusCode(error.value()) == absl::StatusCode::kNotFound
                            ? absl::StatusCode::kNotFound
                            : absl::StatusCode::kInternal,
                        absl::StrCat("cannot copy ", from.string(), " to ", to.string(), ": ", error.message()));
  }

  static fs::path CheckpointDirectory(const fs::path& out, uint64_t version) {
    return out / "checkpoints" / std::to_string(version);
  }

  std::vector<std::string> Command() const {
    const fs::path bin_dir = ProgramDirectory(options_.bin_dir);
    std::vector<std::string> command = {(bin_dir / "millrace").string(),
                                        "train",
                                        "--resume",
                                        "--no-serving",
                                        "--out",
                                        scratch_.path().string(),
                                        "--bin-dir",
                                        bin_dir.string(),
                                        "--shards",
                                        "1",
                                        "--data-replicas",
                                        "1",
                                        "--workers",
                                        absl::StrCat(options_.workers),
                                        "--threads",
                                        absl::StrCat(plan_.recorded_under.threads),
                                        "--device",
                                        plan_.recorded_under.device,
                                        "--keep-checkpoints",
                                        kKeepCheckpoints};
    if (!options_.data_dir.empty()) command.insert(command.end(), {"--data-dir", options_.data_dir});
    return command;
  }

  // Until a checkpoint beyond the step is committed.
  absl::Status Train() {
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> train, ServiceProcess::Start(Command(), log_));
    JobStatusClient job(scratch_.path());
    absl::Time next_status = absl::Now();
    while (!IsRecorded()) {
      if (signals_.WaitFor(kPoll) >= 0) {
        StopGently(*train);
        return absl::CancelledError("interrupted");
      }
      if (!train->Poll()) return IsRecorded() ? absl::OkStatus() : ExplainEnd(*train);
      if (absl::Now() < next_status) continue;
      next_status = absl::Now() + kStatusInterval;
      const std::optional<v1::JobStatus> status = job.Ask();
      const absl::Status dataset =
          status.has_value() && status->has_plan() ? CheckDataset(status->plan().dataset()) : absl::OkStatus();
      if (!dataset.ok()) {
        StopGently(*train);
        return dataset;
      }
      ShowProgress(status);
    }
    StopGently(*train);
    return absl::OkStatus();
  }

  void ShowProgress(const std::optional<v1::JobStatus>& status) {
    if (!status.has_value() || !status->has_plan()) return reporter_.Waiting("the cluster to start");
    reporter_.Live(
        absl::StrCat("step ", FormatCount(std::min(status->version(), options_.step)), " of ",
                     FormatCount(plan_.start_version), " to ", FormatCount(options_.step),
                     status->waiting_for().empty() ? "" : absl::StrCat(", waiting for ", status->waiting_for())));
  }

  bool IsRecorded() const {
    const fs::path checkpoints = scratch_.path() / "checkpoints";
    std::error_code error;
    for (const uint64_t version : NumberedEntries(checkpoints)) {
      if (version <= options_.step) return false;  // they come largest first
      if (fs::exists(checkpoints / std::to_string(version) / "manifest.json", error)) return true;
    }
    return false;
  }

  // Nothing tells the data service of a job that begins anew what it was trained on.
  absl::Status CheckDataset(const v1::DatasetInfo& dataset) const {
    if (dataset.fingerprint() == plan_.dataset.fingerprint()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("the job was trained on another dataset (", plan_.dataset.name(), " ",
                     plan_.dataset.fingerprint().substr(0, 12), ") than is to be had (", dataset.name(), " ",
                     dataset.fingerprint().substr(0, 12), "); name its directory by --data-dir"));
  }

  // In the words of `millrace train`, but for how to go on with it.
  absl::Status ExplainEnd(const ServiceProcess& train) const {
    std::string why = "it did not say why";
    for (absl::string_view line : absl::StrSplit(LastLines(log_, kLogLines), '\n')) {
      if (absl::ConsumePrefix(&line, "millrace: ")) why = std::string(line.substr(0, line.find("; go on")));
    }
    const bool blamed = train.exit_code() == kExitUsage || train.exit_code() == kExitBadConfiguration;
    return blamed ? absl::FailedPreconditionError(why)
                  : absl::AbortedError(absl::StrCat("the replay ", train.DescribeEnd(), ": ", why));
  }

  const ReplayOptions& options_;
  ShutdownSignals& signals_;
  const PrivateDirectory scratch_;
  const ReplayPlan plan_;
  const std::string log_;
  ProgressReporter reporter_;
};

absl::StatusOr<ReplayResult> PrepareAndReplay(const ReplayOptions& options) {
  std::error_code error;
  if (!fs::is_directory(fs::path(options.out) / "checkpoints", error)) {
    return absl::NotFoundError(absl::StrCat("--out: there is no job in ", options.out));
  }
  MILLRACE_ASSIGN_OR_RETURN(ReplayPlan plan,
                            MakeReplayPlan(ReadCheckpointRecords(options.out), options.step, options.slot));
  MILLRACE_ASSIGN_OR_RETURN(PrivateDirectory scratch, PrivateDirectory::Create());
  ShutdownSignals signals;
  return Replay(options, signals, std::move(scratch), std::move(plan)).Run();
}

int ExitCodeOf(const absl::Status& status) {
  if (absl::IsCancelled(status)) return kExitInterrupted;
  if (absl::IsOutOfRange(status)) return kExitUsage;
  const int code = ExitCodeFor(status);
  return code == kExitFailure ? kExitNotReplayed : code;
}

}  // namespace

void AddReplayFlags(CLI::App& app, ReplayOptions& options) {
  app.add_option("--out", options.out, "directory of the job, as given to `millrace train`")->required();
  app.add_option("--step", options.step, "the step to make again, from 0")->required();
  app.add_option("--slot", options.slot, "the slot of it to report, from 0")->required();
  app.add_option("--data-dir", options.data_dir, "directory of the dataset; default: the job's");
  app.add_option("--workers", options.workers, "worker processes; their number has no say in the bits")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_option("--json", options.json, "write the result to this file");
  app.add_option("--bin-dir", options.bin_dir, "where the programs are; default: beside this one");
  app.footer(
      "Trains from the newest checkpoint up to the step, in a directory of its own under TMPDIR, and compares the\n"
      "checksum of every slot's gradient on the way with the one recorded when the job ran. The first step and slot "
      "that\n"
      "differ are named: what came before them is sound. Of a job with staleness it trains on to the job's next "
      "checkpoint.\n"
      "Exit codes: 0 all equal, 1 a slot differs, 64 the step or slot is not recorded, 69 the replay failed itself,\n"
      "78 no job there, not reproducible, or another dataset.");
}

int RunReplay(const ReplayOptions& options) {
  absl::StatusOr<ReplayResult> result = PrepareAndReplay(options);
  if (result.ok()) {
    std::fputs(FormatReplay(*result).c_str(), stdout);
    std::fflush(stdout);
    if (!options.json.empty()) {
      const absl::Status written = WriteFileAtomically(options.json, ReplayJson(*result));
      if (!written.ok()) result = written;
    }
  }
  if (!result.ok()) {
    std::fprintf(stderr, "millrace replay: %s\n", std::string(result.status().message()).c_str());
    return ExitCodeOf(result.status());
  }
  return result->equal() ? kExitOk : kExitFailure;
}

std::string FormatReplay(const ReplayResult& result) {
  const SlotComparison& all = result.comparison;
  const bool same = result.recorded == result.recomputed;
  std::string text =
      absl::StrFormat("step %s slot %d  recorded %s  recomputed %s  %s\n", FormatCount(result.step), result.slot,
                      HexOf(result.recorded), HexOf(result.recomputed), same ? "equal" : "DIFFERENT");
  if (all.first.has_value()) {
    absl::StrAppend(&text, "FAIL: the first that differs is slot ", all.first->slot, " of step ",
                    FormatCount(all.first->step), " (recorded ", HexOf(all.first->before), ", recomputed ",
                    HexOf(all.first->after), "); of ", FormatCount(all.slots), " slots in ", FormatCount(all.steps),
                    all.steps == 1 ? " step " : " steps ", FormatCount(all.differences),
                    all.differences == 1 ? " differs\n" : " differ\n");
  } else {
    absl::StrAppend(&text, "PASS: all ", FormatCount(all.slots), " slots of ", FormatCount(all.steps),
                    all.steps == 1 ? " step" : " steps", " are what they were\n");
  }
  return text;
}

std::string ReplayJson(const ReplayResult& result) {
  const SlotComparison& all = result.comparison;
  nlohmann::ordered_json first = nullptr;
  if (all.first.has_value()) {
    first = {{"step", all.first->step},
             {"slot", all.first->slot},
             {"recorded", HexOf(all.first->before)},
             {"recomputed", HexOf(all.first->after)}};
  }
  return nlohmann::ordered_json{{"equal", result.equal()},
                                {"step", result.step},
                                {"slot", result.slot},
                                {"recorded", HexOf(result.recorded)},
                                {"recomputed", HexOf(result.recomputed)},
                                {"start_version", result.start_version},
                                {"steps_compared", all.steps},
                                {"slots_compared", all.slots},
                                {"differences", all.differences},
                                {"first_difference", first},
                                {"other_fingerprint", result.other_fingerprint}}
             .dump(2) +
         "\n";
}

}  // namespace millrace
