#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "services/cli/fault_injector.h"

namespace CLI {
class App;
}

namespace millrace {

struct VerifyOptions {
  std::string data_dir{};  // empty: where `train` looks for it
  std::string model = "cnn";
  uint32_t epochs = 3;
  uint32_t shards = 2;
  uint32_t data_replicas = 1;
  uint32_t workers = 2;
  uint32_t faults = 12;
  uint64_t seed = 1;                       // of the schedule
  std::string out{};                       // empty: a new directory under out/
  std::string json{};                      // empty: no JSON
  std::string bin_dir{};                   // empty: where this program lies
  std::vector<std::string> train_flags{};  // further ones, for both runs
};

void AddVerifyFlags(CLI::App& app, VerifyOptions& options);

// The certificate: trains a job twice, once in peace and once under a random schedule of deaths, stops, restarts and
// workers that come and go, and compares the SHA-256 of weights and optimizer state. Prints the schedule, what was
// survived and what it cost, and PASS, or the first slot or version that differs. Returns the exit code: kExitOk only
// if all faults happened and the bits are the same.
int RunVerify(const VerifyOptions& options);

// --- For RunVerify, and its tests ---

struct Digests {
  std::string weights{};
  std::string optimizer{};  // empty if it is not known
  bool operator==(const Digests&) const = default;
};
// By version: what the run in `out` left of its checkpoints and servable versions.
std::map<uint64_t, Digests> ReadDigests(const std::filesystem::path& out);
// The last version before which all that both runs have is equal, and the first that differs; nullopt if none does.
std::optional<std::pair<uint64_t, uint64_t>> FirstDifference(const std::map<uint64_t, Digests>& a,
                                                             const std::map<uint64_t, Digests>& b);

struct VerifyResult {
  bool passed = false;
  std::vector<FaultInjector::Result> faults{};
  double step_seconds = 0;  // of the quiet run, which no fault has to answer for
  Digests final{};          // of the quiet run
};
// What a fault cost: the time until the next step, but for a step's usual time.
double SecondsLost(const FaultInjector::Result& fault, double step_seconds);
std::string VerifyJson(const VerifyResult& result);

}  // namespace millrace
