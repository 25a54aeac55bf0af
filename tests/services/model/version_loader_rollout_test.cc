// What a version loader makes of versions that are tried before they serve.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/rollout.h"
#include "services/model/version_loader.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/version_loader_fixture.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// Fake versions agree if they are the same modulo 4.
class VersionLoaderRolloutTest : public VersionLoaderTest {
 protected:
  VersionLoaderRolloutTest() {
    loader_ = std::make_unique<VersionLoader>(
        VersionLoader::Options{
            .repository = root_ / "models",
            .poll_interval = absl::Milliseconds(1),
            .rollout = {.mode = RolloutOptions::Mode::kShadow, .limits = {.rows = 3, .latency_ratio_max = 1e9}}},
        [this](const std::string& directory) {
          if (during_load_) during_load_();
          return FakeLoader()(directory);
        },
        table_, model_metrics_, clock_);
    Publish(1);
    PollAll();
  }
  // Requests until the rollout has a verdict.
  void Ask() {
    const std::vector<uint8_t> pixels(kFakeShape.bytes());
    const InferenceRequest request{.input = pixels, .any_version = true};
    const auto stable = *table_.Find("mnist", 0);
    ASSERT_TRUE(Eventually([&] {
      RouteRequest(stable, request);
      return stable->rollout()->verdict().has_value();
    }));
  }
  // The same, and what the loader makes of it.
  void Decide() {
    Ask();
    PollAll();
  }
  uint64_t Candidate() const {
    const auto found = table_.FindLabel("mnist", "canary");
    return found.ok() ? (*found)->info().version : 0;
  }

  std::function<void()> during_load_;
};

TEST_F(VersionLoaderRolloutTest, TheFirstVersionServesAtOnceAndTheNextAfterItsVerdict) {
  EXPECT_EQ(Serving(), 1u);
  Publish(5);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Candidate(), 5u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_candidate_version{model=\"mnist\"} 5"));
  EXPECT_THAT(table_.Report()[0].reason, HasSubstr("of 3 rows compared"));
  Decide();
  EXPECT_EQ(Serving(), 5u);
  EXPECT_EQ(Candidate(), 0u);
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("millrace_model_candidate_version{model=\"mnist\"} 0"));
  EXPECT_THAT(text, HasSubstr("millrace_model_active_version{model=\"mnist\"} 5"));
  EXPECT_THAT(text, HasSubstr("millrace_model_rollouts_total{model=\"mnist\",reason=\"\",result=\"promoted\"} 1"));
}

TEST_F(VersionLoaderRolloutTest, AVerdictAgainstACandidateRefusesItUntilItIsPinned) {
  Publish(2);
  PollAll();
  Decide();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Candidate(), 0u);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kRefused);
  EXPECT_THAT(table_.Report()[0].reason, HasSubstr("rolled back: agreement: 0 of "));
  EXPECT_THAT(
      metrics_.Render(),
      HasSubstr("millrace_model_rollouts_total{model=\"mnist\",reason=\"agreement\",result=\"rolled_back\"} 1"));
  PollAll();
  EXPECT_EQ(Candidate(), 0u);  // not tried again
  loader_->Pin("mnist", 2);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kLoading);  // no longer refused
  loader_->Pin("mnist", 0);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kRefused);
  EXPECT_THAT(table_.Report()[0].reason, HasSubstr("rolled back"));
  loader_->Pin("mnist", 2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
}

TEST_F(VersionLoaderRolloutTest, AVerdictThatFallsWhileANewerVersionLoadsIsFollowed) {
  Publish(2);
  PollAll();
  during_load_ = [this] {
    during_load_ = nullptr;
    Ask();
  };
  Publish(5);
  PollAll();
  EXPECT_EQ(Candidate(), 5u);
  EXPECT_EQ(table_.Report().back().version, 1u);
  EXPECT_EQ(table_.Report()[1].version, 2u);
  EXPECT_EQ(table_.Report()[1].state, VersionReport::State::kRefused);
  EXPECT_THAT(metrics_.Render(), HasSubstr("reason=\"agreement\",result=\"rolled_back\"} 1"));
}

TEST_F(VersionLoaderRolloutTest, AnUnloadEndsTheRollout) {
  Publish(5);
  PollAll();
  EXPECT_THAT(loader_->Unload("mnist"), IsOk());
  PollAll();
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("millrace_model_active_version{model=\"mnist\"} 0"));
  EXPECT_THAT(text, HasSubstr("millrace_model_candidate_version{model=\"mnist\"} 0"));
  EXPECT_THAT(text, HasSubstr("reason=\"\",result=\"ended\"} 1"));
  EXPECT_THAT(Reload(), IsOk());
  EXPECT_EQ(Serving(), 5u);
  EXPECT_EQ(Candidate(), 0u);
}

TEST_F(VersionLoaderRolloutTest, AReloadOfWhatServesCountsTheRolloutThatItEnds) {
  Publish(5);
  PollAll();
  EXPECT_THAT(Reload(), IsOk());
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Candidate(), 5u) << "tried again";
  EXPECT_THAT(metrics_.Render(), HasSubstr("reason=\"\",result=\"replaced\"} 1"));
}

TEST_F(VersionLoaderRolloutTest, ANewerVersionReplacesTheCandidateWhichIsTriedAgainIfThatOneFails) {
  Publish(5);
  PollAll();
  Publish(6);
  PollAll();
  EXPECT_EQ(Candidate(), 6u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("reason=\"\",result=\"replaced\"} 1"));
  Decide();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Candidate(), 5u);
  Decide();
  EXPECT_EQ(Serving(), 5u);
}

TEST_F(VersionLoaderRolloutTest, APinEndsTheRollout) {
  Publish(5);
  PollAll();
  loader_->Pin("mnist", 1);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Candidate(), 0u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("reason=\"\",result=\"ended\"} 1"));
  loader_->Pin("mnist", 0);
  PollAll();
  EXPECT_EQ(Candidate(), 5u);
  loader_->Pin("mnist", 5);  // the candidate itself
  PollAll();
  EXPECT_EQ(Serving(), 5u);
}

TEST_F(VersionLoaderRolloutTest, AVersionOfAnotherKindCannotBeComparedAndIsRefusedUnlessPinned) {
  Publish(5, "autoencoder");
  PollAll();
  EXPECT_EQ(Candidate(), 0u);
  EXPECT_EQ(table_.Report()[0].reason,
            "incomparable: it maps [1, 2, 3] to a reconstruction, version 1 which serves [1, 2, 3] to 4 classes; a pin "
            "makes it serve");
  during_load_ = [this] {
    during_load_ = nullptr;
    loader_->Pin("mnist", 0);
  };
  loader_->Pin("mnist", 5);
  PollAll();
  EXPECT_EQ(Candidate(), 0u) << "unpinned while it was loading";
  EXPECT_EQ(Serving(), 1u);
  loader_->Pin("mnist", 5);
  PollAll();
  EXPECT_EQ(Serving(), 5u);
}

TEST_F(VersionLoaderRolloutTest, TheVerdictIsFollowedAtOnce) {
  loader_ = std::make_unique<VersionLoader>(
      VersionLoader::Options{.repository = root_ / "models",
                             .poll_interval = absl::Hours(1),
                             .rollout = {.mode = RolloutOptions::Mode::kCanary,
                                         .canary_fraction = 1,
                                         .limits = {.rows = 3, .latency_ratio_max = 1e9}}},
      FakeLoader(), table_, model_metrics_, clock_);
  PollAll();
  Publish(5);
  PollAll();
  ASSERT_EQ(Candidate(), 5u);
  loader_->Start();
  const std::vector<uint8_t> pixels(kFakeShape.bytes());
  EXPECT_TRUE(Eventually([&] {
    RouteRequest(*table_.Find("mnist", 0), {.input = pixels, .any_version = true});
    return Serving() == 5;
  }));
}

}  // namespace
}  // namespace millrace
