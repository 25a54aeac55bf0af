#include "services/model/version_loader.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/version_loader_fixture.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST_F(VersionLoaderTest, WaitsForARepositoryThenServesTheNewest) {
  PollAll();
  EXPECT_THAT(loader_->repository_status(), StatusIs(absl::StatusCode::kNotFound));
  Publish(1);
  Publish(2);
  PollAll();
  EXPECT_THAT(loader_->repository_status(), IsOk());
  EXPECT_EQ(Serving(), 2u);
  EXPECT_EQ(loads_, 1);
  PollAll();
  EXPECT_EQ(loads_, 1);
}

TEST_F(VersionLoaderTest, ARefusedVersionLeavesTheOldOneServingAndSaysWhy) {
  Publish(1);
  PollAll();
  Publish(2, "bad");
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kRefused);
  EXPECT_EQ(table_.Report()[0].reason, "digest: model.pt differs");
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("millrace_model_loads_total{model=\"mnist\",reason=\"digest\",result=\"refused\"} 1"));
  EXPECT_THAT(text, HasSubstr("millrace_model_loads_total{model=\"mnist\",reason=\"\",result=\"loaded\"} 1"));
  EXPECT_THAT(text, HasSubstr("millrace_model_active_version{model=\"mnist\"} 1"));

  // Time alone does not bring it back; other files do.
  clock_.Advance(absl::Hours(24));
  PollAll();
  EXPECT_EQ(loads_, 2);
  Publish(2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  EXPECT_EQ(table_.Report().size(), 1u);
}

TEST_F(VersionLoaderTest, ARefusedVersionThatIsRemovedIsForgotten) {
  Publish(1);
  Publish(2, "bad");
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(table_.Report().size(), 2u);
  std::filesystem::remove_all(root_ / "models/mnist/2");
  PollAll();
  EXPECT_EQ(table_.Report().size(), 1u);
}

TEST_F(VersionLoaderTest, WhatIsNotTheVersionsFaultIsTriedAgainLater) {
  Publish(1);
  PollAll();
  Publish(2, "away");
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(loads_, 2);
  clock_.Advance(absl::Seconds(1));
  PollAll();
  EXPECT_EQ(loads_, 3);
  clock_.Advance(absl::Seconds(1));
  PollAll();
  EXPECT_EQ(loads_, 3);  // the second wait is longer
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_loads_total{model=\"mnist\",reason=\"\",result=\"failed\"} 2"));
}

TEST_F(VersionLoaderTest, AVersionInAnothersDirectoryIsRefused) {
  Publish(1, "misplaced");
  PollAll();
  EXPECT_EQ(Serving(), 0u);
  EXPECT_THAT(table_.Report()[0].reason, HasSubstr("misplaced"));
}

TEST_F(VersionLoaderTest, AnOutageOfTheStorageUnloadsNothing) {
  Publish(1);
  Publish(3);
  PollAll();
  std::filesystem::rename(root_ / "models", root_ / "away");
  PollAll();
  EXPECT_EQ(Serving(), 3u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_repository_readable 0"));
  std::ofstream(root_ / "models") << "not a directory";
  PollAll();
  EXPECT_EQ(Serving(), 3u);
  std::filesystem::remove(root_ / "models");
  std::filesystem::create_directories(root_ / "models/mnist");  // back, but empty
  PollAll();
  EXPECT_EQ(Serving(), 3u);
  Publish(2);  // older than what serves
  PollAll();
  EXPECT_EQ(Serving(), 3u);
  Publish(4);
  PollAll();
  EXPECT_EQ(Serving(), 4u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_repository_readable 1"));
}

TEST_F(VersionLoaderTest, SeveralModelsEachHaveTheirTurn) {
  for (const char* model : {"a", "b", "c"}) PublishFake(root_ / "models", model, 7);
  EXPECT_TRUE(loader_->PollOnce());
  EXPECT_TRUE(loader_->PollOnce());
  EXPECT_TRUE(loader_->PollOnce());
  EXPECT_FALSE(loader_->PollOnce());
  for (const char* model : {"a", "b", "c"}) EXPECT_EQ(Serving(model), 7u);
}

TEST_F(VersionLoaderTest, RunsOnAThreadOfItsOwnAndStops) {
  loader_->Start();
  Publish(1);
  EXPECT_TRUE(Eventually([&] { return Serving() == 1; }));
  loader_->Stop();
  loader_->Stop();
}

TEST_F(VersionLoaderTest, APinSurvivesPushesAndEndsWhenItIsTakenAway) {
  for (uint64_t version : {1, 2, 3}) {
    Publish(version);
    PollAll();
  }
  loader_->Pin("mnist", 2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  EXPECT_TRUE(table_.Report()[0].pinned);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_pinned_version{model=\"mnist\"} 2"));
  Publish(4);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  loader_->Pin("mnist", 0);
  PollAll();
  EXPECT_EQ(Serving(), 4u);
}

TEST_F(VersionLoaderTest, APinnedVersionThatIsRefusedLeavesTheOtherServing) {
  Publish(1);
  PollAll();
  Publish(2, "bad");
  PollAll();
  loader_->Pin("mnist", 2);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kRefused);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
}

// Fake versions say version % 4 of every row: here version 1 is right in 60 %, 4 in 40 %, 3 in none.
TEST_F(VersionLoaderTest, AVersionThatIsWorseOnTheCanarySetIsRefusedUnlessItIsPinned) {
  std::vector<uint8_t> labels(100, 0);
  std::fill_n(labels.begin(), 60, 1);
  CanarySet set(kFakeShape, std::vector<uint8_t>(labels.size() * kFakeShape.bytes()), labels);
  loader_ = std::make_unique<VersionLoader>(VersionLoader::Options{.repository = root_ / "models",
                                                                   .poll_interval = absl::Milliseconds(1),
                                                                   .canary_set = set,
                                                                   .canary_margin = 0.25},
                                            FakeLoader(), table_, model_metrics_, clock_);
  Publish(1);
  PollAll();
  EXPECT_DOUBLE_EQ(table_.Report()[0].canary_score->value, 0.6);
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_canary_score{measure=\"accuracy\",model=\"mnist\",version=\"1\"} 0.6"));
  Publish(3);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kRefused);
  EXPECT_EQ(table_.Report()[0].reason,
            "worse accuracy: 0.00 % of the canary set's 100 rows, version 1 which serves has 60.00 %; the margin is "
            "25.00 %");
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_loads_total{model=\"mnist\",reason=\"worse\",result=\"refused\"} 1"));
  clock_.Advance(absl::Hours(24));
  PollAll();
  EXPECT_THAT(metrics_.Render(), HasSubstr("reason=\"worse\",result=\"refused\"} 1"));  // not tried again

  Publish(4);  // 40 %: within the margin
  PollAll();
  EXPECT_EQ(Serving(), 4u);
  loader_->Pin("mnist", 3);
  PollAll();
  EXPECT_EQ(Serving(), 3u);
}

TEST_F(VersionLoaderTest, APinIsFollowedAtOnce) {
  loader_ = std::make_unique<VersionLoader>(
      VersionLoader::Options{.repository = root_ / "models", .poll_interval = absl::Hours(1)}, FakeLoader(), table_,
      model_metrics_, clock_);
  Publish(1);
  Publish(2);
  loader_->Start();
  ASSERT_TRUE(Eventually([&] { return Serving() == 2; }));
  loader_->Pin("mnist", 1);
  EXPECT_TRUE(Eventually([&] { return Serving() == 1; }));
}

TEST_F(VersionLoaderTest, AReloadTriesWhatWasRefusedAndTellsHowItWent) {
  Publish(1);
  PollAll();
  Publish(2, "bad");
  PollAll();
  EXPECT_EQ(loads_, 2);
  EXPECT_THAT(Reload(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("model.pt differs")));
  EXPECT_EQ(loads_, 3) << "once, and not what serves instead";
  EXPECT_EQ(Serving(), 1u);
  Publish(2, "good");
  EXPECT_THAT(Reload(), IsOk());
  EXPECT_EQ(Serving(), 2u);
  EXPECT_THAT(Reload("other"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("model other")));
  EXPECT_EQ(Serving(), 2u);
}

TEST_F(VersionLoaderTest, AReloadLoadsWhatServesAgainAndLeavesItIfThatFails) {
  Publish(1);
  PollAll();
  const LoadedVersion* const first = table_.Find("mnist", 0)->get();
  std::shared_ptr<const LoadedVersion> held = *table_.Find("mnist", 0);
  EXPECT_THAT(Reload(), IsOk());
  EXPECT_NE(table_.Find("mnist", 0)->get(), first);
  EXPECT_EQ(table_.Report().size(), 1u) << "one version, whatever its lives";
  Publish(1, "bad");
  EXPECT_THAT(Reload(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(Serving(), 1u);
  ASSERT_EQ(table_.Report().size(), 1u);
  EXPECT_EQ(table_.Report()[0].state, VersionReport::State::kServing);
  EXPECT_THAT(table_.Report()[0].reason, HasSubstr("model.pt differs"));
  std::filesystem::remove_all(root_ / "models");
  EXPECT_THAT(Reload(), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Serving(), 1u);
}

TEST_F(VersionLoaderTest, AnUnloadedModelStaysSoUntilItIsLoadedAgain) {
  Publish(1);
  Publish(2);
  PollAll();
  EXPECT_THAT(table_.Unload("mnist"), IsOk());
  EXPECT_THAT(table_.Find("mnist", 0), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("unloaded by an operator")));
  Publish(3);
  PollAll();
  EXPECT_EQ(Serving(), 0u);
  EXPECT_THAT(Reload(), IsOk());
  EXPECT_EQ(Serving(), 3u);
  // Unloaded between the wish to load it and its fulfilment.
  absl::Status status;
  loader_->Reload("mnist", [&](const absl::Status& result) { status = result; });
  EXPECT_THAT(table_.Unload("mnist"), IsOk());
  PollAll();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("unloaded")));
  EXPECT_EQ(Serving(), 0u);
}

TEST_F(VersionLoaderTest, ReloadsThatWaitAreBoundedAndEndWithTheLoader) {
  Publish(1);
  PollAll();
  int stopped = 0, refused = 0;
  for (size_t i = 0; i < VersionLoader::kReloadsMax + 2; ++i) {
    loader_->Reload("mnist", [&](const absl::Status& status) {
      stopped += absl::IsUnavailable(status) ? 1 : 0;
      refused += absl::IsResourceExhausted(status) ? 1 : 0;
    });
  }
  EXPECT_EQ(refused, 2);
  EXPECT_THAT(loader_->Unload("mnist"), IsOk());
  loader_->Reload("mnist", [&](const absl::Status& status) { refused += absl::IsResourceExhausted(status) ? 1 : 0; });
  EXPECT_EQ(refused, 3);
  EXPECT_TRUE(table_.unloaded("mnist")) << "what was refused has no effect";
  loader_->Stop();
  EXPECT_EQ(stopped, static_cast<int>(VersionLoader::kReloadsMax));
  loader_->Reload("mnist", [&](const absl::Status& status) { stopped += absl::IsUnavailable(status) ? 1 : 0; });
  EXPECT_EQ(stopped, static_cast<int>(VersionLoader::kReloadsMax) + 1);
}

}  // namespace
}  // namespace millrace
