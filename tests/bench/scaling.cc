// Time and processor time of a training step without its computation: simulated workers against real shards, all on
// this machine, over real gRPC. Prints one JSON object; scaling.py makes a table of many.
//
// With --checkpoint-steps also how long steps take while a checkpoint is being made, from the step that makes its
// version to the manifest on disk.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/allocator.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "tests/bench/bench_cluster.h"
#include "tests/bench/simulated_workers.h"

namespace millrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kPoll = absl::Milliseconds(5);
constexpr absl::Duration kJoinTimeout = absl::Minutes(2);

struct Options {
  BenchCluster::Options cluster;
  uint32_t workers = 1;
  double compute_ms = 0;
  double warm_up_seconds = 1;
  double seconds = 3;
  uint64_t steps_min = 20;
};

double OwnCpuSeconds() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

// What was used and done up to one moment.
struct Reading {
  double workers_cpu = 0;
  std::vector<double> shards_cpu;
  uint64_t pushes = 0;
};

// When worker 0 had which version, from the end of the warm-up on.
class Timeline {
 public:
  struct Version {
    uint64_t version;
    absl::Time time;
  };

  explicit Timeline(std::function<Reading()> read) : read_(std::move(read)) {}

  // On worker 0's thread. A version of which it has a second lease is not another one.
  void Note(uint64_t version) {
    if (!measuring_) return;
    MutexLock lock(&mutex_);
    if (!versions_.empty() && versions_.back().version == version) return;
    if (versions_.empty()) begin_ = read_();
    versions_.push_back({version, absl::Now()});
    if (!end_due_) return;
    end_ = read_();
    measuring_ = false;
  }

  void Begin() { measuring_ = true; }
  // The next version is the last.
  void End() {
    MutexLock lock(&mutex_);
    end_due_ = true;
  }
  bool ended() const {
    MutexLock lock(&mutex_);
    return end_due_ && !measuring_;
  }
  uint64_t steps() const {
    MutexLock lock(&mutex_);
    return versions_.empty() ? 0 : versions_.size() - 1;
  }
  absl::Duration elapsed() const {
    MutexLock lock(&mutex_);
    return versions_.empty() ? absl::ZeroDuration() : absl::Now() - versions_.front().time;
  }
  std::vector<Version> versions() const {
    MutexLock lock(&mutex_);
    return versions_;
  }
  Reading begin() const {
    MutexLock lock(&mutex_);
    return begin_;
  }
  Reading end() const {
    MutexLock lock(&mutex_);
    return end_;
  }

 private:
  const std::function<Reading()> read_;
  std::atomic<bool> measuring_ = false;
  mutable Mutex mutex_;
  bool end_due_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Version> versions_ ABSL_GUARDED_BY(mutex_);
  Reading begin_ ABSL_GUARDED_BY(mutex_), end_ ABSL_GUARDED_BY(mutex_);
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Steps by whether a checkpoint was being made meanwhile.
struct CommitTimes {
  struct Commit {
    uint64_t version;
    absl::Time committed;
  };

  static Json ToJson(const std::vector<Timeline::Version>& versions, const std::vector<Commit>& commits) {
    Json json = Json::array();
    std::vector<double> quiet;
    std::vector<bool> busy(versions.size(), false);  // of the step that made versions[i]
    for (const Commit& commit : commits) {
      Json one;
      std::vector<double> steps;
      absl::Time reached = absl::InfiniteFuture();
      for (size_t i = 1; i < versions.size(); ++i) {
        if (versions[i].version < commit.version || versions[i - 1].time > commit.committed) continue;
        if (versions[i].version == commit.version) reached = versions[i].time;
        busy[i] = true;
        steps.push_back(absl::ToDoubleMilliseconds(versions[i].time - versions[i - 1].time));
      }
      if (reached == absl::InfiniteFuture()) continue;  // begun before the window
      one["version"] = commit.version;
      one["commit_ms"] = absl::ToDoubleMilliseconds(commit.committed - reached);
      one["step_ms"] = steps;
      json.push_back(one);
    }
    for (size_t i = 1; i < versions.size(); ++i) {
      if (!busy[i]) quiet.push_back(absl::ToDoubleMilliseconds(versions[i].time - versions[i - 1].time));
    }
    return {{"commits", json}, {"quiet_step_ms", quiet}};
  }
};

absl::StatusOr<Json> Measure(const Options& options) {
  MILLRACE_ASSIGN_OR_RETURN(const auto cluster, BenchCluster::Start(options.cluster));
  std::atomic<const SimulatedWorkers*> running = nullptr;
  Timeline timeline([&] { return Reading{OwnCpuSeconds(), cluster->CpuSeconds(), running.load()->pushes()}; });
  SimulatedWorkers workers(*cluster, options.workers, absl::Milliseconds(options.compute_ms),
                           [&](uint64_t version) { timeline.Note(version); });
  running = &workers;

  const auto look = [&]() -> absl::Status {
    absl::SleepFor(kPoll);
    MILLRACE_RETURN_IF_ERROR(cluster->Check());
    return workers.status();
  };
  const absl::Time join_by = absl::Now() + kJoinTimeout;
  while (!workers.all_at_work()) {
    if (absl::Now() > join_by) return absl::DeadlineExceededError("the workers did not all get to work");
    MILLRACE_RETURN_IF_ERROR(look());
  }
  const absl::Time begin = absl::Now() + absl::Seconds(options.warm_up_seconds);
  while (absl::Now() < begin) MILLRACE_RETURN_IF_ERROR(look());
  timeline.Begin();

  std::vector<CommitTimes::Commit> commits;
  const uint64_t every = options.cluster.job.checkpoint_steps.value_or(0);
  uint64_t next = every;
  while (!timeline.ended()) {
    MILLRACE_RETURN_IF_ERROR(look());
    if (every > 0 && cluster->IsCommitted(next)) {
      commits.push_back({next, absl::Now()});
      next += every;
    }
    if (timeline.steps() >= options.steps_min && timeline.elapsed() > absl::Seconds(options.seconds)) timeline.End();
  }

  const auto versions = timeline.versions();
  const Reading from = timeline.begin(), to = timeline.end();
  const double steps = static_cast<double>(versions.size() - 1);
  std::vector<double> step_ms, shards_ms;
  for (size_t i = 1; i < versions.size(); ++i) {
    step_ms.push_back(absl::ToDoubleMilliseconds(versions[i].time - versions[i - 1].time));
  }
  for (size_t i = 0; i < to.shards_cpu.size(); ++i) {
    shards_ms.push_back(1e3 * (to.shards_cpu[i] - from.shards_cpu[i]) / steps);
  }
  Json json = {
      {"workers", options.workers},
      {"shards", options.cluster.shards},
      {"slots", options.cluster.job.slots.value()},
      {"parameters", workers.parameters()},
      {"steps", versions.size() - 1},
      {"step_ms", absl::ToDoubleMilliseconds(versions.back().time - versions.front().time) / steps},
      {"median_step_ms", Median(step_ms)},
      {"pushes_per_step", static_cast<double>(to.pushes - from.pushes) / steps},
      {"workers_cpu_ms", 1e3 * (to.workers_cpu - from.workers_cpu) / steps},
      {"shards_cpu_ms", shards_ms},
      {"shards_peak_mib", cluster->PeakMemoryMib()},
  };
  if (every > 0) json.update(CommitTimes::ToJson(versions, commits));
  return json;
}

int Main(int argc, char** argv) {
  Options options;
  JobFlags& job = options.cluster.job;
  job.slots = 64;
  job.batch_size = 64;
  CLI::App app("Time per step of workers that compute nothing");
  app.add_option("--bin", options.cluster.bin_dir, "where the services' programs are")->required();
  app.add_option("--out", options.cluster.out, "a new directory for checkpoints and logs")->required();
  app.add_option("--workers", options.workers);
  app.add_option("--shards", options.cluster.shards);
  app.add_option("--model", job.model);
  app.add_option("--image-size", options.cluster.image_size);
  app.add_option("--slots", job.slots);
  app.add_option("--batch-size", job.batch_size);
  app.add_option("--wire", job.wire);
  app.add_option("--checkpoint-steps", job.checkpoint_steps);
  app.add_option("--compute-ms", options.compute_ms, "how long a worker sleeps over a lease");
  app.add_option("--warm-up-seconds", options.warm_up_seconds);
  app.add_option("--seconds", options.seconds);
  CLI11_PARSE(app, argc, argv);

  TuneAllocator();
  const absl::StatusOr<Json> measured = Measure(options);
  if (!measured.ok()) {
    std::cerr << measured.status() << "\n";
    return 1;
  }
  std::cout << *measured << std::endl;
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
