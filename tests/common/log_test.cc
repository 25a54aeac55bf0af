#include "common/log.h"

#include <filesystem>
#include <limits>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

constexpr absl::Time kTime = absl::FromUnixMillis(1'769'860'800'123);

std::string Text(std::string_view message, LogFields fields) {
  return FormatLogLine(LogFormat::kText, kTime, LogLevel::kInfo, "millrace-ps", message, fields);
}
std::string Json(std::string_view message, LogFields fields) {
  return FormatLogLine(LogFormat::kJson, kTime, LogLevel::kWarning, "millrace-ps", message, fields);
}

TEST(LogTest, TextLine) {
  EXPECT_EQ(Text("worker joined", {{"worker", "worker-0"}, {"step", 812}, {"ready", true}}),
            "2026-01-31T12:00:00.123Z I millrace-ps: worker joined worker=worker-0 step=812 ready=true");
}

TEST(LogTest, JsonLine) {
  EXPECT_EQ(Json("worker joined", {{"worker", "worker-0"}, {"step", 812}, {"seconds", 0.5}}),
            R"({"time":"2026-01-31T12:00:00.123Z","level":"warning","service":"millrace-ps",)"
            R"("message":"worker joined","worker":"worker-0","step":812,"seconds":0.5})");
}

TEST(LogTest, FieldsOfEveryKind) {
  const absl::string_view view = "v";
  EXPECT_EQ(Text("m", {{"a", std::string("s")},
                       {"b", std::string_view("sv")},
                       {"c", view},
                       {"d", absl::NotFoundError("no file")},
                       {"e", absl::Milliseconds(1500)},
                       {"f", uint64_t{1} << 63},
                       {"g", -1},
                       {"h", std::filesystem::path("/x")}}),
            "2026-01-31T12:00:00.123Z I millrace-ps: m a=s b=sv c=v d=\"NOT_FOUND: no file\" e=1.5s "
            "f=9223372036854775808 g=-1 h=/x");
}

TEST(LogTest, WhatAPeerSendsCannotForgeALineOrBreakTheJson) {
  const std::string evil = "x\n2026 E fake: \"quoted\" \x1b[31m \xff";
  EXPECT_EQ(Text(evil, {{"name", evil}}).find('\n'), std::string::npos);
  EXPECT_EQ(Text(evil, {{"name", evil}}).find('\x1b'), std::string::npos);
  const nlohmann::json line = nlohmann::json::parse(Json(evil, {{"name", evil}}));
  EXPECT_EQ(line["name"].get<std::string>().substr(0, 7), "x\n2026 ");
}

TEST(LogTest, InfinityAndNanAreStringsInJson) {
  const nlohmann::json line = nlohmann::json::parse(
      Json("m", {{"a", std::numeric_limits<double>::infinity()}, {"b", std::numeric_limits<double>::quiet_NaN()}}));
  EXPECT_TRUE(line["a"].is_string());
  EXPECT_TRUE(line["b"].is_string());
}

TEST(LogTest, WritesWholeLinesToStderrFromTheLevelUp) {
  testing::internal::CaptureStderr();
  ConfigureLogging("test", LogLevel::kWarning, LogFormat::kText);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int j = 0; j < 50; ++j) {
        LogInfo("hidden");
        LogError("shown", {{"j", j}});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ConfigureLogging("", LogLevel::kInfo, LogFormat::kText);
  const std::string output = testing::internal::GetCapturedStderr();
  const std::vector<std::string> lines = absl::StrSplit(output, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 200u);
  for (const std::string& line : lines) EXPECT_NE(line.find(" E test: shown j="), std::string::npos) << line;
}

}  // namespace
}  // namespace millrace
