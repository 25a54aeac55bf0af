// Ten thousand schedules, in four parts that may run beside each other. A failing one prints its seed;
//   MILLRACE_SIMULATION_SEED=<seed> build/release/tests/simulation_test --gtest_filter='*OneSeed*'
// runs that one alone and tells its story. MILLRACE_SIMULATION_SEEDS=<n> tries n seeds in each part.
#include "tests/simulation/simulation.h"

#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "gtest/gtest.h"

namespace millrace::simulation {
namespace {

constexpr uint64_t kParts = 4;
constexpr uint64_t kSeedsPerPart = 2500;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  uint64_t value = otherwise;
  if (text != nullptr && !absl::SimpleAtoi(text, &value)) ADD_FAILURE() << name << " is no number: " << text;
  return value;
}

class SimulationTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  // Faults are what is tested: their log lines tell nothing.
  static void SetUpTestSuite() { ConfigureLogging("simulation", LogLevel::kNone, LogFormat::kText); }
};

TEST_P(SimulationTest, EveryScheduleEndsWithTheSameBits) {
  const uint64_t seeds = FromEnvironment("MILLRACE_SIMULATION_SEEDS", kSeedsPerPart);
  Simulator simulator;
  SimulationResult sum;
  for (uint64_t i = 0; i < seeds; ++i) {
    const uint64_t seed = i * kParts + GetParam();
    const SimulationResult result = simulator.Run({.seed = seed});
    ASSERT_EQ(result.violation, "") << "MILLRACE_SIMULATION_SEED=" << seed;
    sum.worker_kills += result.worker_kills;
    sum.server_kills += result.server_kills;
    sum.power_failures += result.power_failures;
    sum.pauses += result.pauses;
    sum.broken_streams += result.broken_streams;
    sum.disk_failures += result.disk_failures;
    sum.restarts += result.restarts;
    sum.regranted_leases += result.regranted_leases;
    sum.duplicate_results += result.duplicate_results;
    sum.events += result.events;
    sum.seconds += result.seconds;
  }
  RecordProperty("events", static_cast<int>(sum.events));
  printf(
      "%lu schedules, %.0f simulated hours, %lu events: %u workers and %u servers killed, %u power failures, %u "
      "pauses, %u broken streams, %u failed disk calls, %u restarts, %lu leases granted again, %lu results twice\n",
      seeds, sum.seconds / 3600, sum.events, sum.worker_kills, sum.server_kills, sum.power_failures, sum.pauses,
      sum.broken_streams, sum.disk_failures, sum.restarts, sum.regranted_leases, sum.duplicate_results);
  if (seeds < kSeedsPerPart) return;
  // A simulator in which nothing goes wrong would prove nothing.
  for (const uint64_t count : {uint64_t{sum.worker_kills}, uint64_t{sum.server_kills}, uint64_t{sum.power_failures},
                               uint64_t{sum.pauses}, uint64_t{sum.broken_streams}, uint64_t{sum.disk_failures},
                               uint64_t{sum.restarts}, sum.regranted_leases, sum.duplicate_results}) {
    EXPECT_GT(count, seeds / 20);
  }
}
INSTANTIATE_TEST_SUITE_P(Parts, SimulationTest, ::testing::Range(uint64_t{0}, kParts));

TEST(SimulationReplayTest, ASeedGivesTheSameRunEventByEvent) {
  ConfigureLogging("simulation", LogLevel::kNone, LogFormat::kText);
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Simulator one, two;
    two.Run({.seed = seed + 1000});  // what ran before makes no difference
    const SimulationResult first = one.Run({.seed = seed}), second = two.Run({.seed = seed});
    EXPECT_EQ(first.digest, second.digest) << seed;
    EXPECT_EQ(first.events, second.events) << seed;
  }
}

TEST(SimulationReplayTest, OneSeed) {
  if (std::getenv("MILLRACE_SIMULATION_SEED") == nullptr) GTEST_SKIP() << "MILLRACE_SIMULATION_SEED is not set";
  ConfigureLogging("simulation", LogLevel::kInfo, LogFormat::kText);
  const SimulationResult result =
      Simulator().Run({.seed = FromEnvironment("MILLRACE_SIMULATION_SEED", 0), .trace = true});
  EXPECT_EQ(result.violation, "");
}

}  // namespace
}  // namespace millrace::simulation
