#include "services/cli/progress.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/training_status.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// What a reporter wrote.
class Output {
 public:
  ~Output() {
    std::fclose(stream_);
    std::free(buffer_);
  }
  std::FILE* stream() { return stream_; }
  std::string text() {
    std::fflush(stream_);
    return std::string(buffer_, size_);
  }

 private:
  char* buffer_ = nullptr;
  size_t size_ = 0;
  std::FILE* stream_ = open_memstream(&buffer_, &size_);
};

TEST(WaitTrackerTest, ReportsOnlyWaitsOfMoreThanASecond) {
  WaitTracker tracker;
  const absl::Time start = absl::FromUnixSeconds(1'000'000);
  EXPECT_FALSE(tracker.Update(start, "slot 5", 812));
  EXPECT_FALSE(tracker.Update(start + absl::Seconds(1), "slot 5, last heard 1.0 s ago", 812));
  EXPECT_TRUE(tracker.Update(start + absl::Seconds(1.1), "slot 5, last heard 1.1 s ago", 812));
  EXPECT_FALSE(tracker.Update(start + absl::Seconds(1.2), "slot 6", 813));
  EXPECT_TRUE(tracker.Update(start + absl::Seconds(2.3), "slot 6", 813));
  EXPECT_FALSE(tracker.Update(start + absl::Seconds(2.4), "", 813));
  EXPECT_FALSE(tracker.Update(start + absl::Seconds(2.5), "slot 6", 813));
}

TEST(RecoveryTrackerTest, TellsOnceThatStepsAreMadeAgainAndForHowLongNoneWas) {
  RecoveryTracker tracker;
  const absl::Time start = absl::FromUnixSeconds(1'000'000);
  v1::JobStatus status = TrainingStatus();
  status.mutable_plan()->set_run_id(1);
  status.set_version(57);
  EXPECT_EQ(tracker.Update(start, status), std::nullopt);
  EXPECT_EQ(tracker.Update(start + absl::Seconds(1), status), std::nullopt);
  status.mutable_plan()->set_run_id(2);
  status.mutable_plan()->set_start_version(50);
  status.set_version(50);
  v1::Recovery& recovery = *status.add_recoveries();
  recovery.set_reason("shard 1 was restarted");
  EXPECT_EQ(tracker.Update(start + absl::Seconds(2), status), std::nullopt);
  status.mutable_plan()->set_run_id(3);  // once more, before any step
  EXPECT_EQ(tracker.Update(start + absl::Seconds(3), status), std::nullopt);
  status.set_version(51);
  EXPECT_EQ(tracker.Update(start + absl::Seconds(4), status),
            "recovered: shard 1 was restarted; from step 57 back to 50, no step for 4.0 s");
  EXPECT_EQ(tracker.Update(start + absl::Seconds(5), status), std::nullopt);
  status.mutable_plan()->set_run_id(4);
  status.clear_recoveries();
  status.set_version(52);
  EXPECT_EQ(tracker.Update(start + absl::Seconds(6), status),
            "recovered: the coordinator was restarted; from step 51 back to 50, no step for 2.0 s");
  EXPECT_EQ(tracker.count(), 2);
  EXPECT_EQ(tracker.seconds(), 6.0);
}

TEST(ProgressReporterTest, PlainLinesComeEveryFewSecondsAndOncePerEpoch) {
  FakeClock clock;
  Output output;
  ProgressReporter reporter(output.stream(), /*terminal=*/false, clock);
  v1::JobStatus status = TrainingStatus();
  for (int poll = 0; poll < 40; ++poll) {  // 10 s
    reporter.Update(status);
    clock.Advance(absl::Milliseconds(250));
  }
  const std::string text = output.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  v1::Evaluation& evaluation = *status.add_validation();
  evaluation.set_version(422);
  evaluation.set_epoch(1);
  evaluation.set_loss(0.0571);
  evaluation.set_accuracy(0.9832);
  for (int poll = 0; poll < 4; ++poll) reporter.Update(status);
  EXPECT_THAT(output.text(), HasSubstr("epoch 1/10 done at step 422: validation loss 0.0571, accuracy 98.32 %\n"));
  EXPECT_EQ(output.text().find("done at"), output.text().rfind("done at"));
  EXPECT_THAT(output.text(), Not(HasSubstr("\r")));
}

TEST(ProgressReporterTest, SaysWhatALongWaitIsFor) {
  FakeClock clock;
  Output output;
  {
    ProgressReporter reporter(output.stream(), /*terminal=*/true, clock);
    v1::JobStatus status = TrainingStatus();
    status.set_waiting_for("step 1123: slot 3");
    reporter.Update(status);
    EXPECT_THAT(output.text(), Not(HasSubstr("waiting")));
    clock.Advance(absl::Seconds(2));
    reporter.Update(status);
    EXPECT_THAT(output.text(), HasSubstr("waiting for step 1123: sl"));  // cut at the terminal's width
    reporter.Print("worker-1 died");
    EXPECT_THAT(output.text(), HasSubstr("\r\x1b[Kworker-1 died\n"));
    reporter.Update(status);
  }
  EXPECT_THAT(output.text(), testing::EndsWith("\r\x1b[K"));  // the live line does not stay behind
}

TEST(ProgressReporterTest, AFailedCheckpointIsToldOnceAndSoIsItsEnd) {
  FakeClock clock;
  Output output;
  ProgressReporter reporter(output.stream(), /*terminal=*/false, clock);
  v1::JobStatus status = TrainingStatus();
  reporter.Update(status);
  EXPECT_EQ(output.text(), "");
  status.set_checkpoint_error("version 844: no space left on device");
  reporter.Update(status);
  reporter.Update(status);
  const std::string failed = "CHECKPOINT FAILED, training goes on without it: version 844: no space left on device\n";
  EXPECT_EQ(output.text(), failed);
  status.clear_checkpoint_error();
  reporter.Update(status);
  reporter.Update(status);
  EXPECT_EQ(output.text(), failed + "checkpoints are written again\n");
  status.set_checkpoint_error("version 4220: no space left on device");
  status.set_state(v1::JobStatus::STATE_FAILED);
  reporter.Update(status);
  EXPECT_EQ(output.text(), failed + "checkpoints are written again\n") << "training does not go on";
}

TEST(ProgressReporterTest, StartUpWaitsAreShownAfterASecond) {
  FakeClock clock;
  Output output;
  ProgressReporter reporter(output.stream(), /*terminal=*/false, clock);
  reporter.Waiting("data to listen");
  clock.Advance(absl::Milliseconds(900));
  reporter.Waiting("data to listen");
  EXPECT_EQ(output.text(), "");
  clock.Advance(absl::Milliseconds(2200));
  reporter.Waiting("data to listen");
  reporter.Waiting("data to listen");
  EXPECT_EQ(output.text(), "waiting for data to listen (0:03)\n");
  reporter.Waiting("worker-0 to listen");
  EXPECT_EQ(output.text(), "waiting for data to listen (0:03)\n");
}

}  // namespace
}  // namespace millrace
