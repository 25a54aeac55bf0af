#include "services/model/serving_table.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/rollout.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/serving_fixture.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using State = VersionReport::State;

class ServingTableTest : public ServingFixture {
 protected:
  using ServingFixture::ServingFixture;

  std::shared_ptr<const LoadedVersion> Make(const std::string& model, uint64_t version) {
    return std::make_shared<const LoadedVersion>(std::make_unique<FakePredictor>(FakeInfo(model, version)),
                                                 model_metrics_->AddVersion(model, version), 0);
  }
  std::vector<std::pair<uint64_t, State>> States() {
    std::vector<std::pair<uint64_t, State>> states;
    for (const VersionReport& report : table_.Report()) states.emplace_back(report.version, report.state);
    return states;
  }
};

TEST_F(ServingTableTest, EverythingIsUnavailableBeforeTheFirstVersion) {
  EXPECT_FALSE(table_.serves_any());
  for (const char* model : {"", "mnist", "other"}) {
    EXPECT_THAT(table_.Find(model, 0), StatusIs(absl::StatusCode::kUnavailable)) << model;
  }
  table_.SetRefused("mnist", 5, "torn: model.pt is missing");
  EXPECT_THAT(table_.Find("", 0), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("torn: model.pt")));
}

TEST_F(ServingTableTest, FindsByNameByDefaultAndByVersion) {
  table_.Publish(Make("fashion", 3));
  EXPECT_EQ(Serving(""), 3u);  // the only one
  EXPECT_EQ(Serving("fashion", 3), 3u);
  EXPECT_THAT(table_.Find("fashion", 4), StatusIs(absl::StatusCode::kNotFound, HasSubstr("version 3 serves")));
  EXPECT_THAT(table_.Find("other", 0), StatusIs(absl::StatusCode::kNotFound, HasSubstr("serving: fashion")));
  table_.SetLoading("other", 1);
  EXPECT_THAT(table_.Find("other", 0), StatusIs(absl::StatusCode::kUnavailable));
  table_.Publish(Make("mnist", 9));
  EXPECT_EQ(Serving(""), 9u);  // of several: mnist
  EXPECT_THAT(table_.serving_models(), ElementsAre("fashion", "mnist"));
}

TEST_F(ServingTableTest, ARetiredVersionIsListedUntilItsLastRequestEnds) {
  table_.Publish(Make("mnist", 1));
  auto in_flight = *table_.Find("mnist", 0);
  in_flight->CountRequest();
  table_.SetLoading("mnist", 2);
  EXPECT_THAT(States(), ElementsAre(std::pair(2u, State::kLoading), std::pair(1u, State::kServing)));
  table_.Publish(Make("mnist", 2));
  EXPECT_EQ(Serving("mnist"), 2u);
  EXPECT_THAT(States(), ElementsAre(std::pair(2u, State::kServing), std::pair(1u, State::kRetired)));
  EXPECT_EQ(table_.Report()[1].requests, 1u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("version=\"1\""));
  in_flight.reset();
  EXPECT_THAT(States(), ElementsAre(std::pair(2u, State::kServing)));
  EXPECT_THAT(metrics_.Render(), ::testing::Not(HasSubstr("version=\"1\"")));  // the series went too
}

class ServingTableStandbyTest : public ServingTableTest {
 protected:
  ServingTableStandbyTest() : ServingTableTest(2) {}

  void PublishEach(std::initializer_list<uint64_t> versions) {
    for (const uint64_t version : versions) table_.Publish(Make("mnist", version));
  }
};

TEST_F(ServingTableStandbyTest, WhatServedLastIsFoundByItsNumberAndMayServeAgain) {
  PublishEach({1, 2, 3, 4});
  EXPECT_THAT(States(), ElementsAre(std::pair(4u, State::kServing), std::pair(3u, State::kStandby),
                                    std::pair(2u, State::kStandby)));
  EXPECT_EQ(Serving("mnist"), 4u);
  EXPECT_EQ(Serving("mnist", 2), 2u);
  EXPECT_THAT(table_.Find("mnist", 1), StatusIs(absl::StatusCode::kNotFound));
  table_.Publish(table_.FindStandby("mnist", 2));
  EXPECT_THAT(States(), ElementsAre(std::pair(4u, State::kStandby), std::pair(3u, State::kStandby),
                                    std::pair(2u, State::kServing)));
}

TEST_F(ServingTableStandbyTest, AnotherLifeOfAVersionTakesNobodyElsesPlace) {
  PublishEach({1, 2, 3, 3});
  EXPECT_THAT(States(), ElementsAre(std::pair(3u, State::kServing), std::pair(2u, State::kStandby),
                                    std::pair(1u, State::kStandby)))
      << "of what serves";
  PublishEach({2});
  EXPECT_THAT(States(), ElementsAre(std::pair(3u, State::kStandby), std::pair(2u, State::kServing),
                                    std::pair(1u, State::kStandby)))
      << "of what is on standby";
}

TEST_F(ServingTableStandbyTest, AVersionOnStandbyThatIsRefusedWhenLoadedAgainIsOneRow) {
  PublishEach({5, 4});
  table_.SetLoading("mnist", 5);
  EXPECT_THAT(States(), ElementsAre(std::pair(5u, State::kStandby), std::pair(4u, State::kServing)));
  table_.SetRefused("mnist", 5, "worse accuracy");
  EXPECT_THAT(States(), ElementsAre(std::pair(5u, State::kStandby), std::pair(4u, State::kServing)));
  EXPECT_EQ(table_.Report()[0].reason, "worse accuracy");
}

TEST_F(ServingTableStandbyTest, AnUnloadedModelHasNone) {
  PublishEach({1, 2, 3});
  EXPECT_THAT(table_.Unload("mnist"), IsOk());
  EXPECT_EQ(table_.FindStandby("mnist", 2), nullptr);
  EXPECT_THAT(States(), ElementsAre(std::pair(3u, State::kRetired)));
}

TEST_F(ServingTableTest, ACandidateIsFoundByVersionAndByLabelUntilItServesOrIsGivenUp) {
  const auto runner = std::make_shared<ShadowRunner>();
  const auto rollout = [&](uint64_t version) {
    return std::make_shared<Rollout>(Make("mnist", version), RolloutOptions{}, runner, model_metrics_, [] {});
  };
  table_.Publish(Make("mnist", 1));
  EXPECT_THAT(table_.FindLabel("mnist", "canary"),
              StatusIs(absl::StatusCode::kNotFound,
                       "no version of model mnist is labelled 'canary'; there is stable (version 1)"));
  table_.SetLoading("mnist", 2);
  table_.StartRollout(rollout(2));
  EXPECT_EQ(Serving(), 1u);
  EXPECT_EQ(Serving("mnist", 2), 2u);
  EXPECT_EQ((*table_.FindLabel("", "stable"))->info().version, 1u);
  EXPECT_EQ((*table_.FindLabel("", "canary"))->info().version, 2u);
  EXPECT_THAT(table_.FindLabel("mnist", "newest"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("stable (version 1) and canary (version 2)")));
  EXPECT_THAT(table_.FindLabel("other", "stable"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(States(), ElementsAre(std::pair(2u, State::kCandidate), std::pair(1u, State::kServing)));
  EXPECT_EQ(table_.Accounts("mnist", 0)->size(), 2u);

  table_.StartRollout(rollout(3));  // in the other's place
  EXPECT_THAT(States(), ElementsAre(std::pair(3u, State::kCandidate), std::pair(1u, State::kServing)));
  EXPECT_THAT(table_.Accounts("mnist", 2), StatusIs(absl::StatusCode::kNotFound));  // it has not served
  table_.EndRollout("mnist");
  table_.SetRefused("mnist", 3, "rolled back");
  EXPECT_THAT(States(), ElementsAre(std::pair(3u, State::kRefused), std::pair(1u, State::kServing)));

  table_.StartRollout(rollout(4));
  table_.Publish(*table_.FindLabel("mnist", "canary"));
  EXPECT_EQ(Serving(), 4u);
  EXPECT_THAT(table_.FindLabel("mnist", "canary"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(States(), ElementsAre(std::pair(4u, State::kServing), std::pair(3u, State::kRefused)));
  EXPECT_EQ(table_.Accounts("mnist", 0)->size(), 2u);
}

TEST_F(ServingTableTest, APinnedVersionThatIsNotThereIsListedAndOthersWaitForIt) {
  table_.SetPinned("mnist", 7);
  const std::vector<VersionReport> reports = table_.Report();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].version, 7u);
  EXPECT_EQ(reports[0].reason, "not loaded yet");
  EXPECT_TRUE(reports[0].pinned);
  EXPECT_THAT(table_.Find("mnist", 0), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("version 7 is pinned")));
  EXPECT_EQ(table_.pins(), (std::map<std::string, uint64_t>{{"mnist", 7}}));
  table_.SetPinned("mnist", 0);
  EXPECT_TRUE(table_.Report().empty());
}

TEST_F(ServingTableTest, AccountsOutliveTheirVersionsInBoundedNumber) {
  EXPECT_THAT(table_.Accounts("mnist", 0), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE(table_.Accounts("", 0)->empty());
  for (uint64_t version = 1; version <= 40; ++version) {
    table_.Publish(Make("mnist", version));
    (*table_.Find("mnist", 0))->statistics()->CountFailure(absl::Seconds(version));
  }
  table_.Publish(Make("other", 7));
  const auto accounts = *table_.Accounts("mnist", 0);
  ASSERT_EQ(accounts.size(), ServingTable::kAccountsPerModelMax);
  EXPECT_EQ(accounts[0].version, 9u);
  EXPECT_EQ(accounts[0].statistics->numbers().fail.time, absl::Seconds(9));
  EXPECT_EQ(table_.Accounts("", 0)->size(), ServingTable::kAccountsPerModelMax + 1);
  EXPECT_EQ(table_.Accounts("mnist", 40)->size(), 1u);
  EXPECT_THAT(table_.Accounts("mnist", 8), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(ServingTableTest, RefusedVersionsAreListedWithTheirReasonInBoundedNumber) {
  table_.Publish(Make("mnist", 1));
  for (uint64_t version = 2; version < 100; ++version) table_.SetRefused("mnist", version, "golden: differs");
  const auto reports = table_.Report();
  ASSERT_EQ(reports.size(), ServingTable::kReportsPerModelMax + 1);
  EXPECT_EQ(reports[0].version, 99u);
  EXPECT_EQ(reports[0].state, State::kRefused);
  EXPECT_EQ(reports[0].reason, "golden: differs");
  table_.Forget("mnist", 99);
  EXPECT_EQ(table_.Report()[0].version, 98u);
}

}  // namespace
}  // namespace millrace
