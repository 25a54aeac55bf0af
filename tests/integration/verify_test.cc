// The certificate itself, short: real processes, real faults.
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cluster_process.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

nlohmann::json ReadJson(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(stream), {}));
}

struct Job {
  std::string name;
  std::vector<std::string> flags;  // for a short job that is long enough for its faults
  size_t faults;
  int recoveries_min;  // of the run under faults
};

void PrintTo(const Job& job, std::ostream* out) { *out << job.name; }

class VerifyTest : public ::testing::TestWithParam<Job> {};

TEST_P(VerifyTest, TheCertificateOfAShortJob) {
  TemporaryDirectory temporary;
  std::vector<std::string> arguments = {"verify",
                                        "--shards",
                                        "2",
                                        "--seed",
                                        "5",
                                        "--faults",
                                        std::to_string(GetParam().faults),
                                        "--out",
                                        temporary / "out",
                                        "--json",
                                        temporary / "verify.json"};
  arguments.insert(arguments.end(), GetParam().flags.begin(), GetParam().flags.end());
  Program verify("millrace", arguments, temporary / "verify.stderr");
  EXPECT_EQ(verify.Wait(), 0) << verify.Errors();
  const nlohmann::json json = ReadJson(temporary / "verify.json");
  EXPECT_EQ(json["passed"], true);
  EXPECT_EQ(json["faults"].size(), GetParam().faults);
  EXPECT_EQ(json["weights_sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(json["optimizer_sha256"].get<std::string>().size(), 64u);
  for (const auto& fault : json["faults"]) {
    std::printf("%s %s at step %d: %.2f s lost\n", fault["kind"].get<std::string>().c_str(),
                fault["part"].get<std::string>().c_str(), fault["step"].get<int>(),
                fault["seconds_lost"].get<double>());
  }
  // Not the same run twice: the one under faults has gone back to checkpoints.
  EXPECT_GE(ReadJson(temporary / "out/faulty.json")["recoveries"], GetParam().recoveries_min);
  EXPECT_EQ(ReadJson(temporary / "out/quiet.json")["recoveries"], 0);
}

INSTANTIATE_TEST_SUITE_P(
    Networks, VerifyTest,
    ::testing::Values(Job{.name = "Cnn",
                          .flags = {"--data-dir", "synthetic:train=1600,test=200", "--epochs", "12", "--batch-size",
                                    "64", "--checkpoint-steps", "20", "--data-replicas", "2"},
                          .faults = 8,
                          .recoveries_min = 2},
                      // Statistics of batch normalisation and noise that must not depend on who computes a slot.
                      Job{.name = "CnnDeep",
                          .flags = {"--model", "cnn_deep", "--data-dir", "synthetic:train=3000,test=500", "--epochs",
                                    "3", "--validation-count", "500", "--checkpoint-steps", "10"},
                          .faults = 12,
                          .recoveries_min = 2}),
    [](const auto& info) { return info.param.name; });

TEST(VerifyFlagsTest, AFlagThatTrainDoesNotKnowIsToldAtOnce) {
  TemporaryDirectory temporary;
  Program verify("millrace", {"verify", "--out", temporary / "out", "--no-such-flag", "3"},
                 temporary / "verify.stderr");
  EXPECT_EQ(verify.Wait(), 78);
  EXPECT_THAT(verify.Errors(), HasSubstr("no-such-flag"));
}

}  // namespace
}  // namespace millrace
