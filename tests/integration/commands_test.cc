// The commands as a person meets them: exit codes, one clear line for every mistake, and nothing left behind.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/address.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/output_directory.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using Flags = std::vector<std::string>;

class CommandsTest : public testing::Test {
 protected:
  CommandsTest() { WriteIdxDataset(data_dir_, {.train_count = 400, .test_count = 100}); }

  struct Outcome {
    int exit_code;
    std::string errors;
  };
  Outcome Run(Flags arguments) {
    const fs::path errors = temporary_ / ("stderr-" + std::to_string(++runs_));
    Program program("millrace", std::move(arguments), errors);
    const int exit_code = program.Wait();
    return {exit_code, program.Errors()};
  }
  Outcome Train(const Flags& flags, const fs::path& out) {
    Flags arguments = {"train", "--data-dir", data_dir_.string(), "--out", out.string(), "--epochs", "1"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Run(arguments);
  }
  // As a person who goes on with a run types it.
  Outcome Resume(const fs::path& out) { return Run({"train", "--resume", "--no-serving", "--out", out.string()}); }
  // The lines that say what is wrong. What is waited for is the machine's affair, and shown on a slow one.
  static int64_t Complaints(const std::string& errors) {
    const std::vector<std::string> lines = absl::StrSplit(absl::StripSuffix(errors, "\n"), '\n');
    return std::ranges::count_if(lines, [](const std::string& line) { return !line.starts_with("waiting for "); });
  }

  TemporaryDirectory temporary_;
  const fs::path data_dir_ = temporary_ / "data";
  const fs::path out_ = temporary_ / "out";
  int runs_ = 0;
};

TEST_F(CommandsTest, BadUsageIsOneLineAndExitCode64) {
  for (const Flags& arguments : std::vector<Flags>{{},
                                                   {"trian"},
                                                   {"train", "--epochs", "0"},
                                                   {"train", "--no-such-flag"},
                                                   {"train", "--model", "resnet"},
                                                   {"train", "--momentum", "0.9"},
                                                   {"train", "--serve", "--no-serving"},
                                                   {"train", "--resume"},
                                                   {"predict"},
                                                   {"predict", "--target", "nowhere", "a.png"},
                                                   {"status", "--target", "nowhere"},
                                                   {"load-test", "--target", "nowhere"}}) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.exit_code, 64) << testing::PrintToString(arguments);
    EXPECT_EQ(Complaints(outcome.errors), 1) << testing::PrintToString(arguments) << outcome.errors;
  }
}

// Of a number that no machine has, so that it holds with GPUs too.
TEST_F(CommandsTest, ADeviceThatIsNotThereIsNamedAndExitCode78) {
  const Outcome outcome = Train({"--device", "cuda:4095", "--no-serving"}, out_);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_THAT(outcome.errors, ContainsRegex("millrace: worker-[01]: device cuda:4095 cannot be used: "));
}

TEST_F(CommandsTest, MissingDataIsOneLineAndLeavesNothingBehind) {
  const Outcome outcome = Train({"--data-dir", (temporary_ / "nowhere").string()}, out_);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_EQ(Complaints(outcome.errors), 1) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("nowhere"));
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(CommandsTest, DamagedDataIsNamedByTheDataService) {
  fs::resize_file(data_dir_ / "train-images-idx3-ubyte", 1000);
  const Outcome outcome = Train({}, out_);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_EQ(Complaints(outcome.errors), 1) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("train-images-idx3-ubyte"));
  EXPECT_FALSE(HoldsResults(out_));
}

TEST_F(CommandsTest, AnUnusableOutputPathIsOneLine) {
  std::ofstream(temporary_ / "file") << "x";
  for (const fs::path& out : {temporary_ / "file", temporary_ / "file/out", fs::path("/proc/millrace")}) {
    const Outcome outcome = Train({}, out);
    EXPECT_EQ(outcome.exit_code, 78) << out;
    EXPECT_EQ(Complaints(outcome.errors), 1) << outcome.errors;
    EXPECT_THAT(outcome.errors, HasSubstr(out.string()));
  }
  EXPECT_EQ(Train({"--json", (temporary_ / "nowhere/result.json").string()}, out_).exit_code, 78);
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(CommandsTest, EarlierResultsAreKept) {
  fs::create_directories(out_ / "models/mnist/46");
  const Outcome outcome = Train({}, out_);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_EQ(Complaints(outcome.errors), 1) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("--resume"));
  EXPECT_FALSE(fs::exists(out_ / "job.textproto"));
}

TEST_F(CommandsTest, APortInUseIsOneLineAndExitCode1) {
  const auto taken = ListeningSocket::Bind(*ParseAddress("127.0.0.1:0"));
  ASSERT_THAT(taken, IsOk());
  const std::string address = taken->address().ToString();
  const Outcome outcome = Train({"--serve", "--serve-listen", address, "--serve-http-listen", "127.0.0.1:0"}, out_);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr(address));
  EXPECT_THAT(outcome.errors, HasSubstr("in use"));
  EXPECT_EQ(Complaints(outcome.errors), 1) << outcome.errors;
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(CommandsTest, ResumingOnAnotherDatasetIsRefused) {
  ASSERT_EQ(Train({"--no-serving"}, out_).exit_code, 0);
  const fs::path other = temporary_ / "other";
  WriteIdxDataset(other, {.train_count = 400, .test_count = 100, .seed = 2});
  const Outcome outcome = Train({"--no-serving", "--resume", "--epochs", "2", "--data-dir", other.string()}, out_);
  EXPECT_EQ(outcome.exit_code, 78) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("dataset"));
  EXPECT_THAT(outcome.errors, Not(HasSubstr("go on")));
  EXPECT_EQ(Train({"--no-serving", "--dataset", "fashion-mnist"}, temporary_ / "named").exit_code, 78);
  const Outcome plain = Resume(out_);
  EXPECT_EQ(plain.exit_code, 0) << "a refused run damaged the one it refused: " << plain.errors;
}

TEST_F(CommandsTest, ResumingAsAnotherJobIsRefusedAndChangesNothing) {
  ASSERT_EQ(Train({"--no-serving"}, out_).exit_code, 0);
  const Outcome outcome = Run({"train", "--resume", "--no-serving", "--out", out_.string(), "--batch-size", "32",
                               "--workers", "3", "--shards", "2"});
  EXPECT_EQ(outcome.exit_code, 78) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("batch"));
  EXPECT_EQ(ReadClusterRecord(out_)->workers, 2u);
  EXPECT_EQ(ReadClusterRecord(out_)->shards, 1u);
  EXPECT_FALSE(fs::exists(out_ / "job.proposed.textproto"));
  const Outcome plain = Resume(out_);
  EXPECT_EQ(plain.exit_code, 0) << "a refused run damaged the one it refused: " << plain.errors;
}

TEST_F(CommandsTest, ResumingWithMoreEpochsGoesOn) {
  ASSERT_EQ(Train({"--no-serving"}, out_).exit_code, 0);
  const Outcome outcome =
      Train({"--no-serving", "--resume", "--epochs", "2", "--json", (temporary_ / "json").string()}, out_);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  std::ifstream json(temporary_ / "json");
  EXPECT_EQ(nlohmann::json::parse(json)["epochs"], 2);
  EXPECT_EQ(Resume(out_).exit_code, 0) << "the job with more epochs is the job now";
}

TEST_F(CommandsTest, AWorkerThatNeverStartsEndsTheRunWithItsLog) {
  const fs::path bin = temporary_ / "bin";
  fs::create_directories(bin);
  for (const char* program : {"millrace-data", "millrace-ps", "millrace-model"}) {
    fs::create_symlink(fs::path(MILLRACE_BIN_DIR) / program, bin / program);
  }
  std::ofstream(bin / "millrace-worker") << "#!/bin/sh\necho out of luck >&2\nexit 1\n";
  fs::permissions(bin / "millrace-worker", fs::perms::owner_all);
  const Outcome outcome = Train({"--no-serving", "--bin-dir", bin.string()}, out_);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("5 times in a row"));
  EXPECT_THAT(outcome.errors, HasSubstr("out of luck"));
}

TEST_F(CommandsTest, CtrlCEndsEveryProcess) {
  ClusterProcess run(out_, data_dir_, {"--epochs", "1000", "--shards", "2"});
  const v1::JobStatus status = run.WaitUntil([](const auto& s) { return s.version() > 0; });
  std::vector<pid_t> children;
  for (const char* name : {"millrace-data", "millrace-ps", "millrace-worker", "millrace-model"}) {
    const std::vector<pid_t> found = run.program().Children(name);
    EXPECT_FALSE(found.empty()) << name;
    children.insert(children.end(), found.begin(), found.end());
  }
  const fs::path sockets = fs::path(ParseAddress(status.shards(0).address())->unix_path).parent_path();
  EXPECT_TRUE(fs::exists(sockets));
  run.program().Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130);
  for (const pid_t child : children) EXPECT_NE(kill(child, 0), 0) << child;
  EXPECT_FALSE(fs::exists(sockets));
  EXPECT_EQ(ReadClusterRecord(out_)->coordinator, "");
}

TEST_F(CommandsTest, AKilledTrainLeavesNoOrphans) {
  ClusterProcess run(out_, data_dir_, {"--epochs", "1000"});
  run.WaitUntil([](const auto& s) { return s.version() > 0; });
  std::vector<pid_t> children;
  for (const char* name : {"millrace-data", "millrace-ps", "millrace-worker", "millrace-model"}) {
    const std::vector<pid_t> found = run.program().Children(name);
    children.insert(children.end(), found.begin(), found.end());
  }
  ASSERT_GE(children.size(), 5u);
  run.program().Signal(SIGKILL);
  EXPECT_EQ(run.Wait(), 128 + SIGKILL);
  for (const pid_t child : children) {
    // Reaped by init or a subreaper, a moment later; a zombie has no command line.
    EXPECT_TRUE(Eventually([&] {
      std::ifstream command(fs::path("/proc") / std::to_string(child) / "cmdline");
      return !command || command.peek() == std::ifstream::traits_type::eof();
    })) << child;
  }
}

TEST_F(CommandsTest, StatusTellsWhatARunningClusterDoes) {
  ClusterProcess run(out_, data_dir_, {"--epochs", "1000", "--workers", "2"});
  run.WaitUntil([](const auto& s) { return s.version() > 0 && s.workers_size() == 2; });
  const std::string command = std::string(MILLRACE_BIN_DIR) + "/millrace status --target " + out_.string();
  FILE* const pipe = popen(command.c_str(), "r");
  std::string text(4096, '\0');
  text.resize(fread(text.data(), 1, text.size(), pipe));
  EXPECT_EQ(pclose(pipe), 0);
  EXPECT_THAT(text, HasSubstr("worker-0"));
  EXPECT_THAT(text, HasSubstr("worker-1"));
  EXPECT_THAT(text, HasSubstr("shard 0"));
  run.program().Signal(SIGTERM);
  EXPECT_EQ(run.Wait(), 130);
  EXPECT_EQ(Run({"status", "--target", out_.string()}).exit_code, 1);
}

TEST_F(CommandsTest, ServesWhatItTrained) {
  ClusterProcess run(
      out_, data_dir_,
      {"--epochs", "4", "--serve", "--serve-listen", "127.0.0.1:0", "--serve-http-listen", "127.0.0.1:0"});
  run.program().WaitForError("until Ctrl-C");
  const nlohmann::json result = run.Result();
  EXPECT_EQ(result["served"]["requests"], 100);
  EXPECT_EQ(result["served"]["version"], result["steps"]);
  EXPECT_NEAR(result["served"]["accuracy"], result["test_accuracy"], 0.011);

  const std::string target = ReadClusterRecord(out_)->model;
  WriteDigitPng(temporary_ / "3.png", 3);
  EXPECT_EQ(Run({"predict", "--target", target, (temporary_ / "3.png").string()}).exit_code, 0);
  const Outcome bad =
      Run({"predict", "--target", target, (temporary_ / "no.png").string(), (temporary_ / "3.png").string()});
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_EQ(Complaints(bad.errors), 1) << bad.errors;
  EXPECT_EQ(Run({"status", "--target", target}).exit_code, 0);
  EXPECT_EQ(Run({"models", "--target", target}).exit_code, 0);
  const fs::path json_file = temporary_ / "load.json";
  EXPECT_EQ(
      Run({"load-test", "--target", target, "--concurrency", "2", "--seconds", "0.5", "--json", json_file.string()})
          .exit_code,
      0);
  std::ifstream json(json_file);
  EXPECT_EQ(nlohmann::json::parse(json)["failed"], 0);

  // The model service is replaced too.
  kill(run.program().Children("millrace-model").at(0), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return run.program().Children("millrace-model").size() == 1; }));

  run.program().Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// The best of a few starts: what the program costs, not what else the machine does.
absl::Duration BestOf(int starts, const std::function<void()>& start) {
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < starts; ++i) {
    const absl::Time begin = absl::Now();
    start();
    best = std::min(best, absl::Now() - begin);
  }
  return best;
}

TEST_F(CommandsTest, TheToolAndTheDataServiceStartInUnder100Milliseconds) {
  EXPECT_LT(BestOf(5, [&] { EXPECT_EQ(Run({"--version"}).exit_code, 0); }), absl::Milliseconds(100));
  EXPECT_LT(BestOf(5,
                   [&] {
                     Program data(
                         "millrace-data",
                         {"--data-dir", data_dir_.string(), "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"},
                         temporary_ / "data.stderr");
                     data.WaitForAddresses();
                   }),
            absl::Milliseconds(100));
}

TEST_F(CommandsTest, TheDataServiceHoldsMnistInUnder150Megabytes) {
  const char* const mnist = std::getenv("MILLRACE_DATA_DIR");
  if (mnist == nullptr) GTEST_SKIP() << "MILLRACE_DATA_DIR is not set: no real MNIST to load";
  ClusterProcess run(out_, mnist, {"--epochs", "100", "--no-serving"});
  run.WaitUntil([](const auto& s) { return s.version() > 20; });
  std::ifstream status(fs::path("/proc") / std::to_string(run.program().Children("millrace-data").at(0)) / "status");
  uint64_t resident_kib = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) resident_kib = std::stoull(line.substr(6));
  }
  EXPECT_GT(resident_kib, 0u);
  EXPECT_LT(resident_kib, 150'000u);
}
#endif

}  // namespace
}  // namespace millrace
