// The certificate itself, short: real processes, real faults.
#include <fstream>
#include <iterator>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

nlohmann::json ReadJson(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(stream), {}));
}

TEST(VerifyTest, TheCertificateOfAShortJob) {
  TemporaryDirectory temporary;
  WriteIdxDataset(temporary / "data");
  Program verify("millrace",
                 {"verify", "--data-dir", temporary / "data", "--epochs", "12", "--shards", "2", "--faults", "8",
                  "--seed", "5", "--out", temporary / "out", "--json", temporary / "verify.json", "--batch-size", "64",
                  "--checkpoint-steps", "20"},
                 temporary / "verify.stderr");
  EXPECT_EQ(verify.Wait(), 0) << verify.Errors();
  const nlohmann::json json = ReadJson(temporary / "verify.json");
  EXPECT_EQ(json["passed"], true);
  EXPECT_EQ(json["faults"].size(), 8u);
  EXPECT_EQ(json["weights_sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(json["optimizer_sha256"].get<std::string>().size(), 64u);
  for (const auto& fault : json["faults"]) {
    std::printf("%s %s at step %d: %.2f s lost\n", fault["kind"].get<std::string>().c_str(),
                fault["part"].get<std::string>().c_str(), fault["step"].get<int>(),
                fault["seconds_lost"].get<double>());
  }
  // Not the same run twice: the one under faults has gone back to checkpoints.
  EXPECT_GE(ReadJson(temporary / "out/faulty.json")["recoveries"], 2);
  EXPECT_EQ(ReadJson(temporary / "out/quiet.json")["recoveries"], 0);
}

TEST(VerifyTest, AFlagThatTrainDoesNotKnowIsToldAtOnce) {
  TemporaryDirectory temporary;
  Program verify("millrace", {"verify", "--out", temporary / "out", "--no-such-flag", "3"},
                 temporary / "verify.stderr");
  EXPECT_EQ(verify.Wait(), 78);
  EXPECT_THAT(verify.Errors(), HasSubstr("no-such-flag"));
}

}  // namespace
}  // namespace millrace
