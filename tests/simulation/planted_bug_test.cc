// Compiled once for every bug of common/planted_bug.h: the simulator must find it, and find it again from the seed.
#include "common/planted_bug.h"

#include <cstdio>

#include "common/log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/simulation/simulation.h"

namespace millrace::simulation {
namespace {

static_assert(kPlantedBug != PlantedBug::kNone);

constexpr uint64_t kSeeds = 500;

TEST(PlantedBugTest, IsFoundAndFoundAgain) {
  ConfigureLogging("simulation", LogLevel::kNone, LogFormat::kText);
  Simulator simulator;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const SimulationResult result = simulator.Run({.seed = seed});
    if (result.violation.empty()) continue;
    printf("found by seed %lu: %s\n", seed, result.violation.c_str());
    EXPECT_EQ(Simulator().Run({.seed = seed}).violation, result.violation);
    return;
  }
  FAIL() << "not found by " << kSeeds << " seeds";
}

}  // namespace
}  // namespace millrace::simulation
