#include "common/replica_choice.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_clock.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::Le;

using Loss = ReplicaChoice::Loss;

class ReplicaChoiceTest : public testing::Test {
 protected:
  static ReplicaChoice Of(size_t replicas) { return ReplicaChoice({.replicas = replicas, .seed = 7}); }
  absl::Duration Lose(ReplicaChoice& choice, Loss how = Loss::kBroken) { return choice.Lost(how, clock_.Now()); }

  FakeClock clock_;
};

TEST_F(ReplicaChoiceTest, TheNextOneIsAskedAtOnceAndAllAgainAfterABackoff) {
  ReplicaChoice choice = Of(3);
  EXPECT_EQ(choice.current(), 0u);
  absl::Duration ceiling = Backoff::kDefaultInitial;
  for (int round = 0; round < 8; ++round) {
    for (const size_t next : {1u, 2u}) {
      EXPECT_EQ(Lose(choice), absl::ZeroDuration());
      EXPECT_EQ(choice.current(), next);
    }
    EXPECT_THAT(Lose(choice), AllOf(Ge(ceiling / 2), Le(ceiling)));
    EXPECT_EQ(choice.current(), 0u);
    EXPECT_TRUE(choice.none_answers());
    ceiling = std::min(2 * ceiling, Backoff::kDefaultMax);
  }
  choice.Answered();
  EXPECT_FALSE(choice.none_answers());
  EXPECT_EQ(Lose(choice), absl::ZeroDuration());
  EXPECT_EQ(Lose(choice), absl::ZeroDuration());
  EXPECT_THAT(Lose(choice), Le(Backoff::kDefaultInitial)) << "the back-off began anew";
}

TEST_F(ReplicaChoiceTest, OneAloneIsAskedAgainAfterABackoffAndNeverGivenUpForItsSilence) {
  ReplicaChoice choice = Of(1);
  EXPECT_THAT(Lose(choice), Ge(Backoff::kDefaultInitial / 2));
  EXPECT_EQ(choice.current(), 0u);
  EXPECT_EQ(choice.patience(), absl::InfiniteDuration());
  EXPECT_EQ(choice.look_at(), absl::InfiniteFuture());
}

TEST_F(ReplicaChoiceTest, PatienceGrowsIfAllAreSilentAndStays) {
  ReplicaChoice choice = Of(2);
  EXPECT_EQ(choice.patience(), absl::Seconds(1));
  Lose(choice);
  Lose(choice);
  EXPECT_EQ(choice.patience(), absl::Seconds(1)) << "they are away, not slow";
  Lose(choice, Loss::kSilent);
  EXPECT_EQ(choice.patience(), absl::Seconds(1)) << "the other one may be well";
  Lose(choice, Loss::kSilent);
  EXPECT_EQ(choice.patience(), absl::Seconds(2));
  choice.Answered();
  EXPECT_EQ(choice.patience(), absl::Seconds(2)) << "or the next batch would be too slow again";
  for (int i = 0; i < 20; ++i) Lose(choice, Loss::kSilent);
  EXPECT_EQ(choice.patience(), absl::Seconds(16));
}

TEST_F(ReplicaChoiceTest, TheFirstIsLookedForAndGoneBackTo) {
  ReplicaChoice choice = Of(3);
  choice.Answered();
  EXPECT_EQ(choice.look_at(), absl::InfiniteFuture());
  Lose(choice);
  choice.Answered();
  EXPECT_EQ(choice.look_at(), clock_.Now() + absl::Seconds(1));
  clock_.Advance(absl::Seconds(1));
  choice.Looked(false, clock_.Now());
  EXPECT_EQ(choice.current(), 1u);
  EXPECT_EQ(choice.look_at(), clock_.Now() + absl::Seconds(1));
  clock_.Advance(absl::Seconds(1));
  choice.Looked(true, clock_.Now());
  EXPECT_EQ(choice.current(), 0u);
  EXPECT_EQ(choice.look_at(), absl::InfiniteFuture());
}

TEST_F(ReplicaChoiceTest, OneThatIsFoundAndLostAgainIsLookedForLessAndLessOften) {
  ReplicaChoice choice = Of(2);
  for (const int seconds : {1, 2, 4, 8, 16, 30, 30}) {
    Lose(choice);
    choice.Answered();
    EXPECT_EQ(choice.look_at(), clock_.Now() + absl::Seconds(seconds));
    choice.Looked(true, clock_.Now());
  }
  choice.Answered();
  Lose(choice);
  EXPECT_EQ(choice.look_at(), clock_.Now() + absl::Seconds(1)) << "it had answered";
}

TEST_F(ReplicaChoiceTest, ARefusalIsFinalOnlyIfAllRefuse) {
  ReplicaChoice choice = Of(2);
  EXPECT_EQ(Lose(choice, Loss::kRefused), absl::ZeroDuration());
  EXPECT_FALSE(choice.all_refuse());
  EXPECT_EQ(choice.current(), 1u);
  Lose(choice);  // away, and may be back
  EXPECT_FALSE(choice.all_refuse());
  Lose(choice, Loss::kRefused);
  EXPECT_FALSE(choice.all_refuse());
  Lose(choice, Loss::kRefused);
  EXPECT_TRUE(choice.all_refuse());
  ReplicaChoice alone = Of(1);
  Lose(alone, Loss::kRefused);
  EXPECT_TRUE(alone.all_refuse());
}

TEST_F(ReplicaChoiceTest, OneThatRefusedAndAnswersIsForgiven) {
  ReplicaChoice choice = Of(2);
  Lose(choice, Loss::kRefused);
  choice.Looked(true, clock_.Now());
  choice.Answered();
  Lose(choice);
  Lose(choice, Loss::kRefused);
  EXPECT_FALSE(choice.all_refuse());
}

TEST(OrderReplicasTest, EachWorkerHasTheReplicasInAnOrderOfItsOwn) {
  const std::vector<std::string> three = {"a", "b", "c"};
  EXPECT_THAT(OrderReplicas(three, "worker-0"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(OrderReplicas(three, "worker-1"), ElementsAre("b", "c", "a"));
  EXPECT_THAT(OrderReplicas(three, "worker-5"), ElementsAre("c", "b", "a"));
  EXPECT_THAT(OrderReplicas({"a"}, "worker-5"), ElementsAre("a"));
  EXPECT_THAT(OrderReplicas({"a", "b"}, "worker-11"), ElementsAre("b", "a"));
  EXPECT_THAT(OrderReplicas({}, "worker-5"), ElementsAre());
  EXPECT_EQ(OrderReplicas(three, "gpu-node"), OrderReplicas(three, "gpu-node"));
  EXPECT_EQ(OrderReplicas(three, "99999999999999999999999").size(), 3u) << "no number that there is";
}

TEST(OrderReplicasTest, WorkersSpreadAlsoWhenOneIsLost) {
  std::map<std::string, int> first, second_after_a;
  for (int worker = 0; worker < 24; ++worker) {
    const auto order = OrderReplicas({"a", "b", "c", "d"}, absl::StrCat("worker-", worker));
    ++first[order[0]];
    if (order[0] == "a") ++second_after_a[order[1]];
  }
  EXPECT_THAT(first, ElementsAre(std::pair("a", 6), std::pair("b", 6), std::pair("c", 6), std::pair("d", 6)));
  EXPECT_THAT(second_after_a, ElementsAre(std::pair("b", 2), std::pair("c", 2), std::pair("d", 2)));
  std::map<std::string, int> hashed;
  for (int worker = 0; worker < 300; ++worker) {
    ++hashed[OrderReplicas({"a", "b", "c"}, absl::StrCat("pod-", worker, "-x"))[0]];
  }
  for (const auto& [address, clients] : hashed) EXPECT_THAT(clients, Ge(70)) << address;
}

}  // namespace
}  // namespace millrace
