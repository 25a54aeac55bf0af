#include "services/cli/verify_command.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::Pair;

TEST(FirstDifferenceTest, ComparesWhatBothRunsHave) {
  const std::map<uint64_t, Digests> quiet = {{10, {"a", "x"}}, {20, {"b", "y"}}, {30, {"c", ""}}, {40, {"d", "z"}}};
  std::map<uint64_t, Digests> faulty = quiet;
  faulty.erase(10);
  EXPECT_EQ(FirstDifference(quiet, faulty), std::nullopt);
  faulty[30].optimizer = "not known of the other";
  EXPECT_EQ(FirstDifference(quiet, faulty), std::nullopt);
  faulty[40].weights = "another";
  EXPECT_THAT(*FirstDifference(quiet, faulty), Pair(30, 40));
  faulty[20].optimizer = "another";
  EXPECT_THAT(*FirstDifference(quiet, faulty), Pair(0, 20));
}

TEST(ReadDigestsTest, ReadsCheckpointsAndServableVersions) {
  TemporaryDirectory directory;
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories((directory / path).parent_path());
    std::ofstream(directory / path) << text;
  };
  write("checkpoints/20/manifest.json", R"({"weights_sha256": "w20", "optimizer_sha256": "o20"})");
  write("checkpoints/30/shard-00000-of-00001.safetensors", "not committed");
  write("models/mnist/20/manifest.json", R"({"weights_sha256": "w20"})");
  write("models/mnist/10/manifest.json", R"({"weights_sha256": "w10"})");
  write("models/mnist/11/manifest.json", "{");
  const auto digests = ReadDigests(directory.path());
  EXPECT_EQ(digests.at(20), (Digests{"w20", "o20"}));
  EXPECT_EQ(digests.at(10), (Digests{"w10", ""}));
}

TEST(VerifyJsonTest, KeepsTheContract) {
  VerifyResult result{.passed = true, .step_seconds = 0.5, .final = {"w", "o"}};
  result.faults.push_back({.fault = {.kind = Fault::Kind::kKill, .part = "worker-1", .step = 9},
                           .version = 10,
                           .until_step = absl::Seconds(2)});
  result.faults.push_back({.fault = {.kind = Fault::Kind::kStop, .part = "data", .step = 20, .pause = absl::Seconds(1)},
                           .version = 20,
                           .until_step = absl::Milliseconds(300)});
  const auto json = nlohmann::json::parse(VerifyJson(result));
  EXPECT_EQ(json["passed"], true);
  EXPECT_EQ(json["weights_sha256"], "w");
  EXPECT_EQ(json["optimizer_sha256"], "o");
  EXPECT_EQ(json["seconds_lost"], 1.5);
  ASSERT_EQ(json["faults"].size(), 2u);
  EXPECT_EQ(json["faults"][0]["kind"], "SIGKILL");
  EXPECT_EQ(json["faults"][0]["part"], "worker-1");
  EXPECT_EQ(json["faults"][0]["step"], 10);
  EXPECT_EQ(json["faults"][0]["seconds_lost"], 1.5);
  EXPECT_EQ(json["faults"][1]["seconds_lost"], 0.0) << "the next step came as soon as ever";
}

}  // namespace
}  // namespace millrace
