// What a version loader makes of versions that are to stand by.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/version_loader.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/version_loader_fixture.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

class VersionLoaderStandbyTest : public VersionLoaderTest {
 protected:
  VersionLoaderStandbyTest() : VersionLoaderTest(1) {
    for (const uint64_t version : {1, 2}) {
      Publish(version);
      PollAll();
    }
  }
};

TEST_F(VersionLoaderStandbyTest, APinLoadsNothingUnlessTheFilesHaveChanged) {
  ASSERT_EQ(loads_, 2);
  loader_->Pin("mnist", 1);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(loads_, 2);
  Publish(2);
  loader_->Pin("mnist", 2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  EXPECT_EQ(loads_, 3);
}

TEST_F(VersionLoaderStandbyTest, APinNeedsNoFiles) {
  fs::remove_all(root_ / "models/mnist/1");
  loader_->Pin("mnist", 1);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  fs::remove_all(root_ / "models");
  loader_->Pin("mnist", 2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  EXPECT_EQ(loads_, 2);
}

class VersionLoaderTwoStandbysTest : public VersionLoaderTest {
 protected:
  VersionLoaderTwoStandbysTest() : VersionLoaderTest(2) {}
};

TEST_F(VersionLoaderTwoStandbysTest, WhatIsThereBeforeTheFirstStandsByToo) {
  for (const uint64_t version : {1, 2, 4}) Publish(version);
  Publish(3, "bad");
  EXPECT_TRUE(loader_->PollOnce());
  EXPECT_EQ(Serving(), 4u) << "what serves comes first";
  EXPECT_EQ(Serving("mnist", 2), 0u);
  PollAll();
  EXPECT_EQ(Serving("mnist", 2), 2u);
  EXPECT_EQ(Serving("mnist", 1), 1u) << "3 is refused";
  EXPECT_EQ(Serving(), 4u);
  EXPECT_EQ(loads_, 4);

  Publish(5);
  PollAll();
  EXPECT_EQ(Serving(), 5u);
  EXPECT_EQ(Serving("mnist", 4), 4u);
  EXPECT_EQ(Serving("mnist", 2), 2u);
  EXPECT_EQ(Serving("mnist", 1), 0u) << "two are enough";
  EXPECT_EQ(loads_, 5);
}

TEST_F(VersionLoaderTwoStandbysTest, ThatCannotBeLoadedAreNoAlarm) {
  Publish(1, "bad");
  Publish(2);
  PollAll();
  EXPECT_EQ(Serving(), 2u);
  EXPECT_EQ(table_.Report()[1].reason, "digest: model.pt differs");
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("result=\"refused\"")));
}

TEST_F(VersionLoaderTwoStandbysTest, ComeBackWhenAnUnloadedModelIsLoadedAgain) {
  for (const uint64_t version : {1, 2, 3}) Publish(version);
  PollAll();
  EXPECT_THAT(loader_->Unload("mnist"), IsOk());
  PollAll();
  EXPECT_TRUE(table_.standby_versions("mnist").empty());
  EXPECT_THAT(Reload(), IsOk());
  PollAll();
  EXPECT_EQ(Serving(), 3u);
  EXPECT_EQ(table_.standby_versions("mnist"), (std::vector<uint64_t>{2, 1}));
}

TEST_F(VersionLoaderTwoStandbysTest, APinOfOneThatIsBeingLoadedIsFollowed) {
  Publish(1);
  Publish(2);
  loader_ = std::make_unique<VersionLoader>(
      VersionLoader::Options{.repository = root_ / "models", .poll_interval = absl::Milliseconds(1)},
      [this](const std::string& directory) {
        ++loads_;
        if (Serving() == 2) loader_->Pin("mnist", 1);
        return FakeLoader()(directory);
      },
      table_, model_metrics_, clock_);
  PollAll();
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(loads_, 2);
  EXPECT_EQ(table_.standby_versions("mnist"), std::vector<uint64_t>{2});
}

TEST_F(VersionLoaderTwoStandbysTest, AnUnloadEndsTheLoadOfAStandby) {
  Publish(1);
  Publish(2);
  loader_ = std::make_unique<VersionLoader>(
      VersionLoader::Options{.repository = root_ / "models", .poll_interval = absl::Milliseconds(1)},
      [this](const std::string& directory) {
        if (Serving() == 2) {
          EXPECT_THAT(loader_->Unload("mnist"), IsOk());
        }
        return FakeLoader()(directory);
      },
      table_, model_metrics_, clock_);
  PollAll();
  EXPECT_FALSE(table_.serves("mnist"));
  EXPECT_TRUE(table_.standby_versions("mnist").empty());
}

}  // namespace
}  // namespace millrace
