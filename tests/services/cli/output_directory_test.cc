#include "services/cli/output_directory.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(OutputDirectoryTest, MakesANewDirectoryAndRemembersTheJob) {
  TemporaryDirectory temporary;
  absl::StatusOr<OutputDirectory> output = OutputDirectory::Open(temporary / "a/b", "", /*resume=*/false);
  ASSERT_THAT(output, IsOk());
  EXPECT_TRUE(std::filesystem::is_directory(temporary / "a/b/models"));
  EXPECT_EQ(output->LogFile("data"), (temporary / "a/b/logs/data.log").string());
  EXPECT_THAT(output->ReadJob(), StatusIs(absl::StatusCode::kNotFound));
  v1::JobSpec spec;
  spec.set_epochs(3);
  ASSERT_THAT(output->WriteJob(spec), IsOk());
  EXPECT_EQ(output->ReadJob()->epochs(), 3u);
}

TEST(OutputDirectoryTest, AProposedJobReplacesTheOldOneOnlyOnceAccepted) {
  TemporaryDirectory temporary;
  const absl::StatusOr<OutputDirectory> output = OutputDirectory::Open(temporary / "out", "", /*resume=*/false);
  ASSERT_THAT(output, IsOk());
  v1::JobSpec spec;
  spec.set_epochs(3);
  ASSERT_THAT(output->WriteJob(spec), IsOk());
  spec.set_epochs(4);
  ASSERT_THAT(output->ProposeJob(spec), IsOk());
  EXPECT_EQ(output->ReadJob()->epochs(), 3u);
  output->WithdrawJob();
  EXPECT_FALSE(std::filesystem::exists(output->proposed_job_file()));
  EXPECT_EQ(output->ReadJob()->epochs(), 3u);
  ASSERT_THAT(output->ProposeJob(spec), IsOk());
  ASSERT_THAT(output->AcceptJob(), IsOk());
  EXPECT_EQ(output->ReadJob()->epochs(), 4u);
  EXPECT_TRUE(std::filesystem::exists(output->proposed_job_file())) << "a parameter server may be started again";
  output->WithdrawJob();
  output->WithdrawJob();  // nothing to do
  EXPECT_EQ(output->ReadJob()->epochs(), 4u);
}

TEST(OutputDirectoryTest, RefusesResultsOfAnEarlierRunUnlessResumed) {
  TemporaryDirectory temporary;
  std::filesystem::create_directories(temporary / "out/models/mnist");
  std::filesystem::create_directories(temporary / "out/checkpoints");
  std::ofstream(temporary / "out/checkpoints/.lock");
  std::ofstream(temporary / "out/models/mnist/config.pbtxt");
  EXPECT_THAT(OutputDirectory::Open(temporary / "out", "", false), IsOk());  // a run that came to nothing
  std::filesystem::create_directories(temporary / "out/models/mnist/422");
  EXPECT_THAT(OutputDirectory::Open(temporary / "out", "", false),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--resume")));
  EXPECT_THAT(OutputDirectory::Open(temporary / "out", "", true), IsOk());
}

TEST(OutputDirectoryTest, OneRunAtATime) {
  TemporaryDirectory temporary;
  {
    const auto first = OutputDirectory::Open(temporary / "out", "", false);
    ASSERT_THAT(first, IsOk());
    EXPECT_THAT(OutputDirectory::Open(temporary / "out", "", false),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("in use")));
  }
  EXPECT_THAT(OutputDirectory::Open(temporary / "out", "", false), IsOk());
}

TEST(OutputDirectoryTest, APathThroughAFileIsAnErrorThatNamesIt) {
  TemporaryDirectory temporary;
  std::ofstream(temporary / "file") << "x";
  EXPECT_THAT(OutputDirectory::Open(temporary / "file/out", "", false).status().ToString(), HasSubstr("file"));
  EXPECT_FALSE(OutputDirectory::Open(temporary / "file/out", "", false).ok());
}

TEST(ClusterRecordTest, IsReadAsItWasWritten) {
  TemporaryDirectory temporary;
  EXPECT_THAT(ReadClusterRecord(temporary.path()), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_THAT(WriteClusterRecord(temporary.path(), {.process_id = 7,
                                                    .data_dir = "/data \"x\"",
                                                    .workers = 3,
                                                    .shards = 2,
                                                    .data_replicas = 3,
                                                    .coordinator = "unix:/s",
                                                    .model = "127.0.0.1:8500",
                                                    .data_flags = {"--clean", "drop"}}),
              IsOk());
  const absl::StatusOr<ClusterRecord> record = ReadClusterRecord(temporary.path());
  ASSERT_THAT(record, IsOk());
  EXPECT_EQ(record->process_id, 7);
  EXPECT_EQ(record->data_dir, "/data \"x\"");
  EXPECT_EQ(record->workers, 3u);
  EXPECT_EQ(record->shards, 2u);
  EXPECT_EQ(record->data_replicas, 3u);
  EXPECT_EQ(record->coordinator, "unix:/s");
  EXPECT_EQ(record->model, "127.0.0.1:8500");
  EXPECT_THAT(record->data_flags, ElementsAre("--clean", "drop"));

  std::ofstream(temporary / "cluster.json") << "{\"process_id\": \"seven\"";
  EXPECT_THAT(ReadClusterRecord(temporary.path()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("damaged")));
}

}  // namespace
}  // namespace millrace
