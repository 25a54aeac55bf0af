#include "services/cli/fault_schedule.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::IsSupersetOf;

TEST(FaultScheduleTest, IsAPureFunctionOfItsSeed) {
  const FaultScheduleOptions options{.seed = 7, .faults = 12, .shards = 2, .workers = 2, .steps = 1266};
  FaultScheduleOptions other = options;
  other.seed = 8;
  EXPECT_EQ(MakeFaultSchedule(options), MakeFaultSchedule(options));
  EXPECT_NE(MakeFaultSchedule(options), MakeFaultSchedule(other));
  // Golden: a seed that was printed last year must give the schedule that it gave then.
  other.seed = 1;
  EXPECT_EQ(DescribeFault(MakeFaultSchedule(other)[4]), "step 424: SIGSTOP parameter-server-1 for 1.1 s");
  EXPECT_EQ(DescribeFault(MakeFaultSchedule(other)[11]), "step 1143: SIGKILL data");
}

TEST(FaultScheduleTest, StepsAscendWithinTheJobAndGuestsLeaveOnlyIfTheyCame) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const auto schedule = MakeFaultSchedule({.seed = seed, .faults = 40, .shards = 3, .workers = 2, .steps = 400});
    ASSERT_EQ(schedule.size(), 40u);
    uint64_t last = 0;
    std::set<std::string> guests;
    for (const Fault& fault : schedule) {
      EXPECT_GT(fault.step, last);
      last = fault.step;
      const bool joins = fault.kind == Fault::Kind::kJoin, leaves = fault.kind == Fault::Kind::kLeave;
      EXPECT_TRUE(!joins || guests.insert(fault.part).second);
      EXPECT_TRUE(!leaves || guests.erase(fault.part) == 1);
      EXPECT_LE(guests.size(), 2u);
      EXPECT_EQ(fault.kind == Fault::Kind::kStop, fault.pause > absl::ZeroDuration());
      EXPECT_LE(fault.pause, absl::Seconds(2));
    }
    EXPECT_LT(last, 400u);
  }
}

TEST(FaultScheduleTest, TwelveFaultsKillEveryKindOfProcessAndAreOfEveryKind) {
  std::map<Fault::Kind, int> kinds;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::set<std::string> killed;
    for (const Fault& fault : MakeFaultSchedule({.seed = seed, .faults = 12, .shards = 2, .steps = 1000})) {
      ++kinds[fault.kind];
      if (fault.kind != Fault::Kind::kKill) continue;
      killed.insert(absl::StartsWith(fault.part, "worker-") ? "worker" : fault.part);
    }
    EXPECT_THAT(killed, IsSupersetOf({"data", "worker", "parameter-server-0", "parameter-server-1"}));
  }
  for (const auto kind : {Fault::Kind::kStop, Fault::Kind::kRestart, Fault::Kind::kJoin, Fault::Kind::kLeave}) {
    EXPECT_THAT(kinds[kind], Ge(10));
  }
}

TEST(FaultScheduleTest, EveryReplicaOfTheDataServiceHasItsFaults) {
  std::map<std::string, std::set<Fault::Kind>> kinds;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const Fault& fault :
         MakeFaultSchedule({.seed = seed, .faults = 12, .shards = 1, .data_replicas = 3, .steps = 1000})) {
      kinds[fault.part].insert(fault.kind);
    }
  }
  for (const char* replica : {"data", "data-1", "data-2"}) {
    EXPECT_THAT(kinds[replica], ElementsAre(Fault::Kind::kKill, Fault::Kind::kStop, Fault::Kind::kRestart)) << replica;
  }
  EXPECT_EQ(kinds.count("data-3"), 0u);
}

TEST(FaultScheduleTest, DescribesWhatIsDone) {
  EXPECT_EQ(DescribeFault({Fault::Kind::kStop, "worker-1", 120, absl::Milliseconds(800)}),
            "step 120: SIGSTOP worker-1 for 0.8 s");
  EXPECT_EQ(DescribeFault({Fault::Kind::kJoin, "guest-0", 3, {}}), "step 3: join guest-0");
}

}  // namespace
}  // namespace millrace
