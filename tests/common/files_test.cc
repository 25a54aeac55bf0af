#include "common/files.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(FilesTest, ReadsBackWhatWasWritten) {
  TemporaryDirectory directory;
  const std::string contents("a\0b\n", 4);
  ASSERT_THAT(WriteFileAtomically(directory / "f", contents), IsOk());
  EXPECT_EQ(ReadFile(directory / "f", 100).value(), contents);
  ASSERT_THAT(WriteFileAtomically(directory / "f", ""), IsOk());
  EXPECT_EQ(ReadFile(directory / "f", 100).value(), "");
}

TEST(FilesTest, LimitIsInclusiveAndNamesTheFile) {
  TemporaryDirectory directory;
  ASSERT_THAT(WriteFileAtomically(directory / "f", "12345"), IsOk());
  EXPECT_EQ(ReadFile(directory / "f", 5).value(), "12345");
  EXPECT_THAT(
      ReadFile(directory / "f", 4),
      StatusIs(absl::StatusCode::kOutOfRange, HasSubstr((directory / "f").string() + " is over the limit of 4")));
}

TEST(FilesTest, ReadsFilesThatDoNotTellTheirSize) {
  EXPECT_THAT(ReadFile("/proc/self/stat", 1 << 20).value(), HasSubstr("("));
  EXPECT_THAT(ReadFile("/proc/self/stat", 3), StatusIs(absl::StatusCode::kOutOfRange));
}

TEST(FilesTest, ErrorsNamePathAndReason) {
  TemporaryDirectory directory;
  EXPECT_THAT(ReadFile(directory / "none", 10), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_FALSE(ReadFile(directory.path(), 10).ok());
  EXPECT_THAT(WriteFileAtomically(directory / "no" / "f", "x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no/f")));
}

TEST(FilesTest, AFailedWriteLeavesTheOldContentsAndNothingElse) {
  TemporaryDirectory directory;
  ASSERT_THAT(WriteFileAtomically(directory / "f", "old"), IsOk());
  // The process's limit on file sizes plays the full disk.
  signal(SIGXFSZ, SIG_IGN);
  rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{1000, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteFileAtomically(directory / "f", std::string(10'000, 'x'));
  setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(ReadFile(directory / "f", 100).value(), "old");
  EXPECT_FALSE(std::filesystem::exists(directory / "f.tmp"));
}

TEST(FilesTest, AFullDiskIsResourceExhausted) {
  if (access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full here";
  TemporaryDirectory directory;
  // The temporary file is a link to a device that is always full.
  std::filesystem::create_symlink("/dev/full", directory / "f.tmp");
  EXPECT_THAT(WriteFileAtomically(directory / "f", "x"), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_FALSE(std::filesystem::exists(directory / "f"));
}

TEST(FilesTest, ALeftoverTemporaryFileIsReplaced) {
  TemporaryDirectory directory;
  std::ofstream(directory / "f.tmp") << "a much longer leftover of a crash";
  ASSERT_THAT(WriteFileAtomically(directory / "f", "new"), IsOk());
  EXPECT_EQ(ReadFile(directory / "f", 100).value(), "new");
}

TEST(FilesTest, RenamesFilesAndDirectories) {
  TemporaryDirectory directory;
  ASSERT_THAT(MakeDirectories(directory / "a" / "b"), IsOk());
  ASSERT_THAT(MakeDirectories(directory / "a" / "b"), IsOk());
  ASSERT_THAT(WriteFileAtomically(directory / "a" / "b" / "f", "x"), IsOk());
  ASSERT_THAT(SyncDirectory(directory / "a" / "b"), IsOk());
  ASSERT_THAT(RenameDurably(directory / "a", directory / "c"), IsOk());
  EXPECT_EQ(ReadFile(directory / "c" / "b" / "f", 10).value(), "x");
  EXPECT_THAT(RenameDurably(directory / "a", directory / "d"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_FALSE(SyncDirectory(directory / "c" / "b" / "f").ok());
}

TEST(FilesTest, RemoveTreeRemovesEverythingAndIsContentWithNothing) {
  TemporaryDirectory directory;
  ASSERT_THAT(MakeDirectories(directory / "a" / "b"), IsOk());
  ASSERT_THAT(WriteFileAtomically(directory / "a" / "f", "x"), IsOk());
  EXPECT_THAT(RemoveTree(directory / "a"), IsOk());
  EXPECT_FALSE(std::filesystem::exists(directory / "a"));
  EXPECT_THAT(RemoveTree(directory / "a"), IsOk());
}

TEST(FilesTest, MakeDirectoriesSaysWhatIsInTheWay) {
  TemporaryDirectory directory;
  ASSERT_THAT(WriteFileAtomically(directory / "f", "x"), IsOk());
  EXPECT_FALSE(MakeDirectories(directory / "f" / "g").ok());
}

TEST(FilesTest, NumberedEntriesAreThoseOfVersions) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(NumberedEntries(directory / "absent").empty());
  for (const char* name : {"12", "7", "007", "-1", "1.tmp", ".lock", "99999999999999999999"}) {
    ASSERT_THAT(WriteFileAtomically(directory / name, ""), IsOk());
  }
  EXPECT_EQ(NumberedEntries(directory.path()), (std::vector<uint64_t>{12, 7}));
}

}  // namespace
}  // namespace millrace
