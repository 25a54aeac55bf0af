#include "services/cli/verify_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <system_error>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/limits.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/checkpoint_records.h"
#include "services/cli/fault_schedule.h"
#include "services/cli/service_process.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPoll = absl::Milliseconds(10);
constexpr size_t kJsonBytesMax = 1 << 20;
constexpr int kLogLinesShown = 5;
// Enough of both runs to tell where they part, and steps that a lost shard costs.
constexpr char kKeepCheckpoints[] = "40";
constexpr char kCheckpointSteps[] = "50";

nlohmann::json ReadJson(const fs::path& file) {
  const absl::StatusOr<std::string> text = ReadFile(file, kJsonBytesMax);
  if (!text.ok()) return nullptr;
  return nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
}

std::string TextOf(const nlohmann::json& json, const char* name) {
  const bool has = json.is_object() && json.contains(name) && json[name].is_string();
  return has ? json[name].get<std::string>() : "";
}

void AddDigests(const fs::path& versions, std::map<uint64_t, Digests>& digests) {
  std::error_code error;
  for (fs::directory_iterator entry(versions, error), end; !error && entry != end; entry.increment(error)) {
    uint64_t version;
    if (!absl::SimpleAtoi(entry->path().filename().string(), &version)) continue;
    const nlohmann::json manifest = ReadJson(entry->path() / "manifest.json");
    Digests& digest = digests[version];
    if (const std::string weights = TextOf(manifest, "weights_sha256"); !weights.empty()) digest.weights = weights;
    if (const std::string state = TextOf(manifest, "optimizer_sha256"); !state.empty()) digest.optimizer = state;
  }
}

class Verification {
 public:
  Verification(const VerifyOptions& options, ShutdownSignals& signals, fs::path out, fs::path bin_dir)
      : options_(options), signals_(signals), out_(std::move(out)), bin_dir_(std::move(bin_dir)) {}

  absl::StatusOr<VerifyResult> Run() {
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(out_));
    std::printf("quiet run: %s, %d epochs, %d shards, %d workers\n", options_.model.c_str(), options_.epochs,
                options_.shards, options_.workers);
    std::fflush(stdout);
    MILLRACE_ASSIGN_OR_RETURN(const nlohmann::json quiet, Train("quiet", {}));
    const uint64_t steps = quiet["steps"];
    VerifyResult result;
    result.step_seconds = quiet["wall_seconds"].get<double>() / static_cast<double>(std::max<uint64_t>(1, steps));
    result.final = {quiet["weights_sha256"], quiet["optimizer_sha256"]};

    const std::vector<Fault> schedule = MakeFaultSchedule({.seed = options_.seed,
                                                           .faults = options_.faults,
                                                           .shards = options_.shards,
                                                           .data_replicas = options_.data_replicas,
                                                           .workers = options_.workers,
                                                           .steps = steps});
    std::printf("%s steps in %.1f s. Now under %d faults, seed %d:\n", FormatCount(steps).c_str(),
                quiet["wall_seconds"].get<double>(), options_.faults, static_cast<int>(options_.seed));
    for (const Fault& fault : schedule) std::printf("  %s\n", DescribeFault(fault).c_str());
    std::fflush(stdout);
    MILLRACE_ASSIGN_OR_RETURN(const nlohmann::json faulty, Train("faulty", schedule));
    result.faults = survived_;
    const Digests final{faulty["weights_sha256"], faulty["optimizer_sha256"]};
    result.passed = final == result.final && survived_.size() == schedule.size();
    Report(result, final, faulty["wall_seconds"]);
    if (result.passed) RemoveCheckpoints();
    return result;
  }

 private:
  std::vector<std::string> Command(const std::string& name) const {
    std::vector<std::string> command = {(bin_dir_ / "millrace").string(),
                                        "train",
                                        "--model",
                                        options_.model,
                                        "--epochs",
                                        absl::StrCat(options_.epochs),
                                        "--shards",
                                        absl::StrCat(options_.shards),
                                        "--data-replicas",
                                        absl::StrCat(options_.data_replicas),
                                        "--workers",
                                        absl::StrCat(options_.workers),
                                        "--bin-dir",
                                        bin_dir_.string(),
                                        "--out",
                                        (out_ / name).string(),
                                        "--json",
                                        (out_ / (name + ".json")).string(),
                                        "--keep-checkpoints",
                                        kKeepCheckpoints,
                                        "--checkpoint-steps",
                                        kCheckpointSteps,
                                        "--no-serving"};
    if (!options_.data_dir.empty()) command.insert(command.end(), {"--data-dir", options_.data_dir});
    command.insert(command.end(), options_.train_flags.begin(), options_.train_flags.end());
    return command;
  }

  // What `train --json` wrote.
  absl::StatusOr<nlohmann::json> Train(const std::string& name, std::vector<Fault> schedule) {
    const std::string log = (out_ / (name + ".log")).string();
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> train, ServiceProcess::Start(Command(name), log));
    FaultInjector injector(RealClock(), train->pid(), out_ / name, bin_dir_, std::move(schedule));
    size_t told = 0;
    while (train->Poll()) {
      if (signals_.WaitFor(kPoll) >= 0) {
        StopGently(*train);
        return absl::CancelledError("interrupted");
      }
      MILLRACE_RETURN_IF_ERROR(injector.Poll());
      for (; told < injector.results().size() && injector.results()[told].until_step.has_value(); ++told) {
        const FaultInjector::Result& result = injector.results()[told];
        std::printf("survived  %s: the next step after %.2f s\n", DescribeFault(result.fault).c_str(),
                    absl::ToDoubleSeconds(*result.until_step));
        std::fflush(stdout);
      }
    }
    survived_ = injector.results();
    if (train->exit_code() != kExitOk) {
      const std::string end = absl::StrCat("the ", name, " run ", train->DescribeEnd(), "; the end of ", log, ":\n",
                                           LastLines(log, kLogLinesShown));
      const bool blamed = train->exit_code() == kExitUsage || train->exit_code() == kExitBadConfiguration;
      return blamed ? absl::FailedPreconditionError(end) : absl::AbortedError(end);
    }
    nlohmann::json json = ReadJson(out_ / (name + ".json"));
    if (!json.is_object()) return absl::InternalError(absl::StrCat("the ", name, " run left no result"));
    return json;
  }

  StepChecksums Checksums(const char* name) const { return MergeChecksums(ReadCheckpointRecords(out_ / name)); }

  // They have nothing more to tell.
  void RemoveCheckpoints() const {
    std::error_code ignored;
    for (const char* name : {"quiet", "faulty"}) fs::remove_all(out_ / name / "checkpoints", ignored);
  }

  void Report(const VerifyResult& result, const Digests& final, double wall_seconds) const {
    double lost = 0;
    for (const FaultInjector::Result& fault : result.faults) lost += SecondsLost(fault, result.step_seconds);
    std::printf("%d of %d faults happened and cost %.1f s; the run took %.1f s\n",
                static_cast<int>(result.faults.size()), options_.faults, lost, wall_seconds);
    std::printf("weights    sha256 %s quiet\n           sha256 %s under faults\n", result.final.weights.c_str(),
                final.weights.c_str());
    std::printf("optimizer  sha256 %s quiet\n           sha256 %s under faults\n", result.final.optimizer.c_str(),
                final.optimizer.c_str());
    if (result.passed) {
      std::printf("PASS: the same bits\n");
    } else if (final == result.final) {
      std::printf("FAIL: the same bits, but the job was over before all faults had happened\n");
    } else if (const auto slots = CompareSlots(Checksums("quiet"), Checksums("faulty")); slots.first.has_value()) {
      std::printf("FAIL: slot %d of step %d is the first gradient that differs\n", static_cast<int>(slots.first->slot),
                  static_cast<int>(slots.first->step));
    } else if (const auto difference = FirstDifference(ReadDigests(out_ / "quiet"), ReadDigests(out_ / "faulty"))) {
      std::printf("FAIL: version %d is the first that differs, version %d was still the same\n",
                  static_cast<int>(difference->second), static_cast<int>(difference->first));
    } else {
      std::printf("FAIL: only the last versions differ\n");
    }
    std::fflush(stdout);
  }

  const VerifyOptions& options_;
  ShutdownSignals& signals_;
  const fs::path out_;
  const fs::path bin_dir_;
  std::vector<FaultInjector::Result> survived_;  // of the newest run
};

}  // namespace

void AddVerifyFlags(CLI::App& app, VerifyOptions& options) {
  app.add_option("--data-dir", options.data_dir, "directory of the dataset");
  app.add_option("--model", options.model, "a built-in network or a .pt file")->capture_default_str();
  app.add_option("--epochs", options.epochs, "passes over the train split")->capture_default_str();
  app.add_option("--shards", options.shards, "parameter-server processes")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_option("--data-replicas", options.data_replicas, "data-service processes")
      ->capture_default_str()
      ->check(CLI::Range(1u, kDataReplicasMax));
  app.add_option("--workers", options.workers, "worker processes; up to two more come and go")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_option("--faults", options.faults, "how many")->capture_default_str()->check(CLI::Range(1, 10'000));
  app.add_option("--seed", options.seed, "of the schedule of faults")->capture_default_str();
  app.add_option("--out", options.out, "a new directory for both runs; default: under out/");
  app.add_option("--json", options.json, "write the result to this file");
  app.add_option("--bin-dir", options.bin_dir, "where the programs are; default: beside this one");
  app.allow_extras();
  app.footer("Other flags go to `millrace train`.");
}

int RunVerify(const VerifyOptions& options) {
  ShutdownSignals signals;
  std::error_code error;
  const fs::path out = fs::absolute(
      options.out.empty()
          ? absl::StrCat("out/verify-", absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone()))
          : options.out,
      error);
  absl::StatusOr<VerifyResult> result = Verification(options, signals, out, ProgramDirectory(options.bin_dir)).Run();
  if (result.ok() && !options.json.empty()) {
    if (const absl::Status status = WriteFileAtomically(options.json, VerifyJson(*result)); !status.ok()) {
      result = status;
    }
  }
  if (!result.ok()) {
    std::fprintf(stderr, "millrace verify: %s\n", std::string(result.status().message()).c_str());
    return ExitCodeFor(result.status());
  }
  return result->passed ? kExitOk : kExitFailure;
}

std::map<uint64_t, Digests> ReadDigests(const fs::path& out) {
  std::map<uint64_t, Digests> digests;
  std::error_code error;
  for (fs::directory_iterator model(out / "models", error), end; !error && model != end; model.increment(error)) {
    AddDigests(model->path(), digests);
  }
  AddDigests(out / "checkpoints", digests);
  return digests;
}

std::optional<std::pair<uint64_t, uint64_t>> FirstDifference(const std::map<uint64_t, Digests>& a,
                                                             const std::map<uint64_t, Digests>& b) {
  uint64_t same = 0;
  for (const auto& [version, digests] : a) {
    const auto other = b.find(version);
    if (other == b.end()) continue;
    const bool states =
        digests.optimizer.empty() || other->second.optimizer.empty() || digests.optimizer == other->second.optimizer;
    if (digests.weights != other->second.weights || !states) return std::pair(same, version);
    same = version;
  }
  return std::nullopt;
}

double SecondsLost(const FaultInjector::Result& fault, double step_seconds) {
  if (!fault.until_step.has_value()) return 0;
  return std::max(0.0, absl::ToDoubleSeconds(*fault.until_step) - step_seconds);
}

std::string VerifyJson(const VerifyResult& result) {
  nlohmann::ordered_json faults = nlohmann::ordered_json::array();
  double lost = 0;
  for (const FaultInjector::Result& fault : result.faults) {
    const double seconds = SecondsLost(fault, result.step_seconds);
    lost += seconds;
    faults.push_back({{"kind", FaultName(fault.fault.kind)},
                      {"part", fault.fault.part},
                      {"step", fault.version},
                      {"pause_seconds", absl::ToDoubleSeconds(fault.fault.pause)},
                      {"seconds_lost", seconds}});
  }
  return nlohmann::ordered_json{{"passed", result.passed},
                                {"faults", faults},
                                {"weights_sha256", result.final.weights},
                                {"optimizer_sha256", result.final.optimizer},
                                {"seconds_lost", lost}}
             .dump(2) +
         "\n";
}

}  // namespace millrace
