#include "common/config_file.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A program's flags, parsed once.
struct Tool {
  Tool() : app("A test.", "tool") {
    app.add_option("--name", name)->capture_default_str();
    app.add_option("--threads", threads)->capture_default_str()->check(CLI::Range(1, 64));
    app.add_option("--data", data);
    app.add_flag("--resume", resume);
    CLI::App* train = app.add_subcommand("train");
    train->add_option("--epochs", epochs)->required();
  }
  std::optional<int> Parse(std::vector<std::string> arguments) {
    std::vector<const char*> argv = {"tool"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const auto code = ParseCommandLine(app, static_cast<int>(argv.size()), argv.data());
    out = testing::internal::GetCapturedStdout();
    err = testing::internal::GetCapturedStderr();
    return code;
  }

  CLI::App app;
  std::string name = "a";
  int threads = 1;
  std::vector<std::string> data;
  bool resume = false;
  int epochs = 0;
  std::string out, err;
};

class ConfigFileTest : public ::testing::Test {
 protected:
  ~ConfigFileTest() override { unsetenv("MILLRACE_THREADS"); }

  std::string Write(const std::string& text) {
    std::ofstream(file_) << text;
    return file_;
  }

  const TemporaryDirectory directory_;
  const std::string file_ = directory_ / "tool.yaml";
};

TEST_F(ConfigFileTest, FlagsComeFromTheFile) {
  Tool tool;
  EXPECT_EQ(tool.Parse({"--config", Write("name: c\nthreads: 3  # of four\ndata: [x, 'y z']\nresume: true\n")}),
            std::nullopt)
      << tool.err;
  EXPECT_EQ(tool.name, "c");
  EXPECT_EQ(tool.threads, 3);
  EXPECT_THAT(tool.data, ElementsAre("x", "y z"));
  EXPECT_TRUE(tool.resume);
}

TEST_F(ConfigFileTest, TheEnvironmentWinsAndTheCommandLineOverBoth) {
  setenv("MILLRACE_THREADS", "4", 1);
  Tool by_environment;
  EXPECT_EQ(by_environment.Parse({"--config", Write("name: c\nthreads: 3\n")}), std::nullopt);
  EXPECT_EQ(by_environment.threads, 4);
  EXPECT_EQ(by_environment.name, "c");
  Tool by_command_line;
  EXPECT_EQ(by_command_line.Parse({"--config", file_, "--threads", "5", "--name", "d"}), std::nullopt);
  EXPECT_EQ(by_command_line.threads, 5);
  EXPECT_EQ(by_command_line.name, "d");
}

TEST_F(ConfigFileTest, ASubcommandHasItsOwn) {
  Tool tool;
  EXPECT_EQ(tool.Parse({"train", "--config", Write("epochs: 7\n")}), std::nullopt) << tool.err;
  EXPECT_EQ(tool.epochs, 7);
  Tool other;
  EXPECT_EQ(other.Parse({"train", "--config", Write("epochs: 7\nname: c\n")}), kExitBadConfiguration);
  EXPECT_THAT(other.err, HasSubstr("tool.yaml: line 2: name is no flag of train"));
}

TEST_F(ConfigFileTest, AnEmptyFileSetsNothing) {
  Tool tool;
  EXPECT_EQ(tool.Parse({"--config", Write("# nothing\n")}), std::nullopt) << tool.err;
  EXPECT_EQ(tool.threads, 1);
}

TEST_F(ConfigFileTest, FaultsAreOneLineThatNamesFileAndKey) {
  const std::pair<std::string, std::string> cases[] = {
      {"thread: 3\n", "line 1: thread is no flag of tool"},
      {"config: other.yaml\n", "line 1: config is no flag of tool"},
      {"threads: 3\nthreads: 4\n", "line 2: threads is there twice"},
      {"threads: {a: b}\n", "line 1: threads is neither a value nor a list of values"},
      {"threads:\n", "line 1: threads is neither a value nor a list of values"},
      {"data: []\n", "line 1: data is neither a value nor a list of values"},
      {"- threads\n", "not a map of flags"},
      {"threads: [3\n", "line 2"},
  };
  for (const auto& [text, fault] : cases) {
    Tool tool;
    EXPECT_EQ(tool.Parse({"--config", Write(text)}), kExitBadConfiguration) << text;
    EXPECT_THAT(tool.err, AllOf(HasSubstr(file_), HasSubstr(fault))) << text;
    EXPECT_EQ(std::count(tool.err.begin(), tool.err.end(), '\n'), 1) << tool.err;
  }
  Tool limit;
  EXPECT_EQ(limit.Parse({"--config", Write("threads: 65\n")}), kExitUsage);
  EXPECT_THAT(limit.err, HasSubstr("--threads"));
  Tool missing;
  EXPECT_EQ(missing.Parse({"--config", directory_ / "none.yaml"}), kExitBadConfiguration);
  EXPECT_THAT(missing.err, HasSubstr("none.yaml"));
}

TEST_F(ConfigFileTest, WhatIsPrintedCanBeReadAgain) {
  Tool tool;
  EXPECT_EQ(tool.Parse({"--print-config", "--data", "x", "y, z", "--resume", "--name", "c: d"}), kExitOk);
  EXPECT_EQ(tool.out, "name: \"c: d\"\n# threads: 1\ndata: [x, \"y, z\"]\nresume: true\n");
  Tool again;
  EXPECT_EQ(again.Parse({"--config", Write(tool.out)}), std::nullopt) << again.err;
  EXPECT_EQ(again.name, "c: d");
  EXPECT_EQ(again.data, tool.data);
  EXPECT_TRUE(again.resume);

  Tool train;
  EXPECT_EQ(train.Parse({"train", "--epochs", "2", "--print-config"}), kExitOk);
  EXPECT_EQ(train.out, "epochs: 2\n");
}

TEST_F(ConfigFileTest, ValidatingChecksAndSaysNothing) {
  Tool good;
  EXPECT_EQ(good.Parse({"--validate-config", "--config", Write("threads: 3\n")}), kExitOk);
  EXPECT_EQ(good.out + good.err, "");
  Tool bad;
  EXPECT_EQ(bad.Parse({"--validate-config", "--config", Write("threads: many\n")}), kExitUsage);
  EXPECT_THAT(bad.err, HasSubstr("--threads"));
}

}  // namespace
}  // namespace millrace
