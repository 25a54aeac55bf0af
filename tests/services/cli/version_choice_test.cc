#include "services/cli/version_choice.h"

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/model.pb.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// The request that the flags make, or what is wrong with them.
template <typename Request>
std::string RequestOf(const std::vector<std::string>& arguments) {
  CLI::App app;
  VersionChoice choice;
  AddVersionFlags(app, choice);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  Request request;
  choice.Fill(request);
  return request.ShortDebugString();
}

TEST(VersionChoiceTest, FillsPredictionsAndExplanationsAlike) {
  EXPECT_EQ(RequestOf<v1::PredictRequest>({}), "");
  EXPECT_EQ(RequestOf<v1::PredictRequest>({"--model", "digits", "--version", "422"}),
            R"(model: "digits" version: 422)");
  EXPECT_EQ(RequestOf<v1::PredictRequest>({"--label", "canary"}), R"(label: "canary")");
  EXPECT_EQ(RequestOf<v1::ExplainRequest>({"--key", "a reader"}), R"(key: "a reader")");
}

TEST(VersionChoiceTest, OneWayOfChoosingAtATime) {
  EXPECT_THAT(RequestOf<v1::PredictRequest>({"--version", "422", "--label", "stable"}), HasSubstr("--label"));
  EXPECT_THAT(RequestOf<v1::PredictRequest>({"--version", "422", "--key", "a reader"}), HasSubstr("--key"));
  EXPECT_THAT(RequestOf<v1::PredictRequest>({"--label", "canary", "--key", "a reader"}), HasSubstr("--key"));
  EXPECT_THAT(RequestOf<v1::PredictRequest>({"--label", "newest"}), HasSubstr("newest"));
}

}  // namespace
}  // namespace millrace
