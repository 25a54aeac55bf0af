#include "services/model/version_policy.h"

#include <algorithm>
#include <set>

#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

ModelState State(const std::string& model, std::vector<uint64_t> available, uint64_t serving = 0) {
  ModelState state{.model = model, .available = {}, .serving = serving, .failed = {}};
  for (uint64_t version : available) state.available.push_back({.version = version, .identity = version * 10});
  return state;
}

std::optional<uint64_t> Next(const ModelState& state, absl::Time now = kNow) {
  const auto action = NextLoad({&state, 1}, now);
  return action ? std::optional(action->version.version) : std::nullopt;
}

TEST(NextLoad, TakesTheNewestFirst) {
  EXPECT_EQ(Next(State("m", {10, 20, 30})), 30u);
  EXPECT_EQ(Next(State("m", {10, 20, 30}, 20)), 30u);
}

TEST(NextLoad, NeverGoesBack) {
  EXPECT_EQ(Next(State("m", {10, 20, 30}, 30)), std::nullopt);
  EXPECT_EQ(Next(State("m", {10}, 30)), std::nullopt);
}

TEST(NextLoad, APinnedVersionAndNothingElseIsLoaded) {
  ModelState state = State("m", {10, 20, 30}, 30);
  state.pinned = 20;
  EXPECT_EQ(Next(state), 20u) << "back";
  state.serving = 10;
  EXPECT_EQ(Next(state), 20u) << "and forth";
  state.serving = 20;
  EXPECT_EQ(Next(state), std::nullopt) << "whatever is pushed";
  state.pinned = 25;
  EXPECT_EQ(Next(state), std::nullopt) << "not there";
  state.pinned = 10;
  state.failed[10] = {.identity = 100, .retry_at = absl::InfiniteFuture()};
  EXPECT_EQ(Next(state), std::nullopt) << "refused: what serves goes on";
  state.pinned = 0;
  EXPECT_EQ(Next(state), 30u) << "unpinned";
}

TEST(NextStandby, TakesTheNewestBeforeTheOneThatServesUntilThereAreEnough) {
  ModelState state = State("m", {10, 20, 30, 40, 50}, 40);
  const auto next = [&] {
    const auto action = NextStandby({&state, 1}, kNow);
    EXPECT_TRUE(!action || action->standby);
    return action ? std::optional(action->version.version) : std::nullopt;
  };
  EXPECT_EQ(next(), std::nullopt);
  state.standby_wanted = 3;
  EXPECT_EQ(next(), 30u);
  state.standby = {50, 30};
  EXPECT_EQ(next(), 20u);
  state.failed[20] = {.identity = 200, .retry_at = absl::InfiniteFuture()};
  EXPECT_EQ(next(), 10u) << "what was refused is passed over";
  state.unloaded = true;
  EXPECT_EQ(next(), std::nullopt);
  state.unloaded = false;
  state.standby = {50, 30, 10};
  EXPECT_EQ(next(), std::nullopt) << "enough";
  state.standby.clear();
  state.serving = 10;
  EXPECT_EQ(next(), std::nullopt) << "nothing is older";
  state.serving = 0;
  EXPECT_EQ(next(), std::nullopt) << "nothing serves";
}

TEST(NextLoad, APinOverrulesARefusalByComparisonOnly) {
  ModelState state = State("m", {10, 20}, 10);
  state.failed[20] = {.identity = 200, .retry_at = absl::InfiniteFuture(), .by_comparison = true};
  EXPECT_EQ(Next(state), std::nullopt);
  state.pinned = 20;
  EXPECT_EQ(Next(state), 20u);
  state.failed[20].by_comparison = false;
  EXPECT_EQ(Next(state), std::nullopt);
}

TEST(NextLoad, TakesOnlyWhatIsNewerThanTheCandidateToo) {
  ModelState state = State("m", {10, 20, 30}, 10);
  state.candidate = 20;
  EXPECT_EQ(Next(state), 30u);
  state.candidate = 30;
  EXPECT_EQ(Next(state), std::nullopt);
}

TEST(NextLoad, WhatServesIsLoadedAgainIfAskedAndNothingElseOlder) {
  ModelState state = State("m", {10, 20}, 20);
  state.reload = true;
  EXPECT_EQ(Next(state), 20u);
  state.available.push_back({.version = 30, .identity = 300});
  EXPECT_EQ(Next(state), 30u) << "the newer one first";
  state = State("m", {10}, 20);
  state.reload = true;
  EXPECT_EQ(Next(state), std::nullopt) << "never back";
  state = State("m", {10, 20, 30}, 20);
  state.reload = true;
  state.pinned = 10;
  EXPECT_EQ(Next(state), 10u);
  state.serving = 10;
  EXPECT_EQ(Next(state), 10u) << "pinned, and again";
}

TEST(NextLoad, AnUnloadedModelGetsNothing) {
  ModelState state = State("m", {10, 20});
  state.unloaded = true;
  EXPECT_EQ(Next(state), std::nullopt);
  state.pinned = 10;
  state.reload = true;
  EXPECT_EQ(Next(state), std::nullopt);
}

TEST(NextLoad, DoesNothingWhenTheRepositoryIsEmpty) {
  EXPECT_EQ(Next(State("m", {}, 30)), std::nullopt);
  EXPECT_EQ(NextLoad({}, kNow), std::nullopt);
}

TEST(NextLoad, PassesOverARefusedVersionUntilItsFilesChange) {
  ModelState state = State("m", {10, 20, 30}, 10);
  state.failed[30] = {.identity = 300, .retry_at = absl::InfiniteFuture()};
  EXPECT_EQ(Next(state), 20u);
  state.failed[20] = {.identity = 200, .retry_at = absl::InfiniteFuture()};
  EXPECT_EQ(Next(state), std::nullopt);
  state.available[2].identity = 301;
  EXPECT_EQ(Next(state), 30u);
}

TEST(NextLoad, RetriesWhatWasNotTheVersionsFaultWhenItsTimeHasCome) {
  ModelState state = State("m", {30}, 10);
  state.failed[30] = {.identity = 300, .retry_at = kNow + absl::Seconds(1)};
  EXPECT_EQ(Next(state), std::nullopt);
  EXPECT_EQ(Next(state, kNow + absl::Seconds(1)), 30u);
}

TEST(NextLoad, AModelThatServesNothingGoesFirstThenTheOneThatWaitedLongest) {
  std::vector<ModelState> models = {State("busy", {10, 20}, 10), State("waiting", {20}, 10), State("new", {5})};
  models[0].last_turn = 9;
  models[1].last_turn = 3;
  models[2].last_turn = 8;
  EXPECT_EQ(NextLoad(models, kNow)->model, "new");
  models[2].available.clear();
  EXPECT_EQ(NextLoad(models, kNow)->model, "waiting");
}

// Whatever appears, vanishes and fails, what serves only ever grows, and in the end it is the newest good version.
RC_GTEST_PROP(NextLoad, ServesTheNewestGoodVersionInTheEndAndNeverGoesBack, ()) {
  ModelState state = State("m", {});
  std::set<uint64_t> bad;
  absl::Time now = kNow;
  const int steps = *rc::gen::inRange(1, 60);
  const auto load = [&](const LoadAction& action) {
    const uint64_t version = action.version.version;
    RC_ASSERT(version > state.serving);
    if (bad.contains(version)) {
      const bool refused = *rc::gen::arbitrary<bool>();
      const int attempts = state.failed[version].attempts + 1;
      state.failed[version] = {.identity = action.version.identity,
                               .retry_at = refused ? absl::InfiniteFuture() : now + RetryDelay(attempts),
                               .attempts = attempts};
    } else {
      state.serving = version;
    }
  };
  uint64_t newest_good = 0;
  for (int i = 0; i < steps; ++i) {
    now += absl::Milliseconds(*rc::gen::inRange(0, 5000));
    const uint64_t version = *rc::gen::inRange<uint64_t>(1, 40);
    if (*rc::gen::inRange(0, 4) == 0) {
      std::erase_if(state.available, [&](const AvailableVersion& there) { return there.version == version; });
    } else if (std::none_of(state.available.begin(), state.available.end(),
                            [&](const AvailableVersion& there) { return there.version == version; })) {
      state.available.push_back({.version = version, .identity = version});
      std::sort(state.available.begin(), state.available.end(),
                [](const auto& a, const auto& b) { return a.version < b.version; });
      if (!bad.contains(version) && *rc::gen::inRange(0, 3) == 0) bad.insert(version);
    }
    if (const auto action = NextLoad({&state, 1}, now)) load(*action);
  }
  for (int i = 0; i < 100; ++i) {
    const auto action = NextLoad({&state, 1}, now);
    if (!action) break;
    load(*action);
  }
  for (const AvailableVersion& there : state.available) {
    if (!bad.contains(there.version)) newest_good = std::max(newest_good, there.version);
  }
  RC_ASSERT(state.serving >= newest_good);
}

TEST(RetryDelay, DoublesUpToAMinute) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(2));
  EXPECT_EQ(RetryDelay(6), absl::Seconds(32));
  EXPECT_EQ(RetryDelay(7), absl::Minutes(1));
  EXPECT_EQ(RetryDelay(1000000), absl::Minutes(1));
}

}  // namespace
}  // namespace millrace
