#include "services/model/version_mirror.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_source.h"
#include "tests/testing/eventually.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class VersionMirrorTest : public ::testing::Test {
 protected:
  void Serve() { server_ = GrpcServer::Start({.address = address_}, {&source_}).value(); }
  void PollAll() {
    for (int polls = 0; mirror_.PollOnce(); ++polls) ASSERT_LT(polls, 20) << "there is always something to fetch";
  }
  std::vector<std::string> Versions() const {
    std::vector<std::string> names;
    std::error_code none_yet;
    for (const auto& entry : fs::directory_iterator(repository_ / "mnist", none_yet)) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }
  std::string Contents(uint64_t version, const std::string& file) const {
    std::ifstream stream(repository_ / "mnist" / absl::StrCat(version) / file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  }

  const TemporaryDirectory directory_;
  const std::string address_ = "unix:" + (directory_ / "source").string();
  const fs::path repository_ = directory_ / "models";
  FakeSource source_;
  std::unique_ptr<GrpcServer> server_;
  FakeClock clock_;
  Metrics metrics_{"test"};
  std::vector<uint64_t> pins_;
  VersionMirror mirror_{{.source = address_,
                         .repository = repository_,
                         .poll_interval = absl::Milliseconds(10),
                         .pins = [this] { return pins_; }},
                        metrics_,
                        clock_};
};

TEST_F(VersionMirrorTest, TheNewestVersionsComeWholeAndOlderOnesGo) {
  for (uint64_t version : {10, 20, 30, 40}) source_->Publish(version, std::string(2500, static_cast<char>(version)));
  Serve();
  ASSERT_TRUE(mirror_.PollOnce());
  EXPECT_THAT(Versions(), ElementsAre("40")) << "the newest first";
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("20", "30", "40"));
  EXPECT_EQ(Contents(40, "model.pt"), std::string(2500, 40));
  EXPECT_EQ(Contents(40, "manifest.json"), source_->versions[40]["manifest.json"]);
  EXPECT_THAT(mirror_.status(), IsOk());
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_source_fetches_total{result=\"fetched\"} 3"));

  source_->Publish(50, "five");
  source_->reads.clear();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("30", "40", "50"));
  EXPECT_THAT(source_->reads, Each(StartsWith("50/")));
}

TEST_F(VersionMirrorTest, WhatIsPinnedIsKeptBesideTheNewest) {
  for (uint64_t version : {10, 20, 30, 40, 50}) source_->Publish(version, absl::StrCat("number ", version));
  pins_ = {10, 844};
  Serve();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10", "30", "40", "50"));
  source_->versions.erase(10);
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10", "30", "40", "50")) << "the source has lost it";
  pins_.clear();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("30", "40", "50"));
}

TEST_F(VersionMirrorTest, SignaturesComeToo) {
  source_->Publish(10, "ten");
  Serve();
  PollAll();
  EXPECT_EQ(Contents(10, "manifest.sig"), "");
  source_->signature = "who made it\n";  // signed after it was fetched
  PollAll();
  EXPECT_EQ(Contents(10, "manifest.sig"), "who made it\n");
  source_->reads.clear();
  PollAll();
  EXPECT_THAT(source_->reads, IsEmpty());
}

TEST_F(VersionMirrorTest, ALostPieceIsAskedForAgainWhereTheFileStopped) {
  source_->Publish(10, std::string(2500, 'm'));
  source_->unavailable_at = 2000;
  source_->unavailable_times = 2;
  Serve();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10"));
  EXPECT_EQ(std::ranges::count(source_->reads, "10/model.pt@0"), 1);
  EXPECT_EQ(std::ranges::count(source_->reads, "10/model.pt@2000"), 3);
}

TEST_F(VersionMirrorTest, WhatIsDamagedOnTheWayGetsNoNameAndComesLater) {
  source_->Publish(10, std::string(2500, 'm'));
  source_->Publish(20, std::string(2500, 'n'));
  source_->flip = 20;
  Serve();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10"));
  EXPECT_THAT(mirror_.status(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("model.pt of version 20")));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_source_fetches_total{result=\"failed\"} 1"));

  source_->flip = 0;
  source_->truncate = 20;
  clock_.Advance(absl::Minutes(1));
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10"));
  EXPECT_THAT(mirror_.status(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("0 of 2500 bytes")));

  source_->truncate = 0;
  EXPECT_FALSE(mirror_.PollOnce()) << "not before its time";
  clock_.Advance(absl::Minutes(1));
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10", "20"));
  EXPECT_THAT(mirror_.status(), IsOk());
}

TEST_F(VersionMirrorTest, AManifestOfAnotherVersionIsRefused) {
  source_->Publish(10, "ten");
  const std::map<std::string, std::string> ten = source_->versions[10];
  source_->versions[20] = ten;
  Serve();
  PollAll();
  EXPECT_THAT(Versions(), ElementsAre("10"));
  EXPECT_THAT(mirror_.status(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("says that it is version 10")));
}

TEST_F(VersionMirrorTest, AModelNameThatLeavesTheRepositoryIsRefused) {
  source_->model = "../elsewhere";
  source_->Publish(10, "ten");
  Serve();
  EXPECT_FALSE(mirror_.PollOnce());
  EXPECT_THAT(mirror_.status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("../elsewhere")));
  EXPECT_THAT(source_->reads, IsEmpty());
}

TEST_F(VersionMirrorTest, ASourceThatIsAwayTakesNothingAway) {
  source_->Publish(10, "ten");
  Serve();
  PollAll();
  server_.reset();
  EXPECT_FALSE(mirror_.PollOnce());
  EXPECT_THAT(mirror_.status(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_source_up 0"));
  EXPECT_THAT(Versions(), ElementsAre("10"));
}

TEST_F(VersionMirrorTest, FollowsOnAThreadOfItsOwnUntilStopped) {
  Serve();
  mirror_.Start();
  ASSERT_TRUE(Eventually([&] { return mirror_.status().ok(); }));
  mirror_.Stop();
  EXPECT_FALSE(mirror_.PollOnce()) << "stopped";
}

}  // namespace
}  // namespace millrace
