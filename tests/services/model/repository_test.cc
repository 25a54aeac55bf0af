#include "services/model/repository.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::Key;

std::vector<uint64_t> Versions(const RepositoryListing& listing, const std::string& model) {
  std::vector<uint64_t> versions;
  if (!listing.models.contains(model)) return versions;
  for (const AvailableVersion& version : listing.models.at(model)) versions.push_back(version.version);
  return versions;
}

uint64_t IdentityOf(const TemporaryDirectory& root, uint64_t version) {
  const auto listing = ListRepository(root.path());
  for (const AvailableVersion& there : listing->models.at("mnist")) {
    if (there.version == version) return there.identity;
  }
  return 0;
}

TEST(ListRepository, FindsCompleteVersionsInNumericOrder) {
  const TemporaryDirectory root;
  for (uint64_t version : {938, 1407, 469}) PublishFake(root.path(), "mnist", version);
  PublishFake(root.path(), "fashion-2", 7);
  const auto listing = ListRepository(root.path());
  ASSERT_THAT(listing, IsOk());
  EXPECT_THAT(listing->models, ElementsAre(Key("fashion-2"), Key("mnist")));
  EXPECT_THAT(Versions(*listing, "mnist"), ElementsAre(469, 938, 1407));
  EXPECT_TRUE(listing->faults.empty());
}

TEST(ListRepository, PassesOverEverythingElse) {
  const TemporaryDirectory root;
  PublishFake(root.path(), "mnist", 5);
  std::filesystem::create_directories(root / "mnist/6");  // no manifest yet
  std::filesystem::create_directories(root / "mnist/8/manifest.json");
  for (const char* name : {"mnist/.9.tmp", "mnist/007", "mnist/0", "mnist/-3", "mnist/latest", "mnist/12a",
                           "mnist/99999999999999999999999", ".hidden/1", "bad name/1"}) {
    std::filesystem::create_directories(root / name);
    std::ofstream(root / name / "manifest.json") << "good";
  }
  std::ofstream(root / "mnist/10") << "a file";
  std::ofstream(root / "mnist/config.pbtxt") << "a file";
  std::ofstream(root / "README") << "a file";
  std::filesystem::create_symlink("nowhere", root / "mnist/11");
  const auto listing = ListRepository(root.path());
  ASSERT_THAT(listing, IsOk());
  EXPECT_THAT(listing->models, ElementsAre(Key("mnist")));
  EXPECT_THAT(Versions(*listing, "mnist"), ElementsAre(5));
  EXPECT_TRUE(listing->faults.empty());
}

TEST(ListRepository, TellsAMissingDirectoryFromAFile) {
  const TemporaryDirectory root;
  EXPECT_THAT(ListRepository(root / "later"), StatusIs(absl::StatusCode::kNotFound));
  std::ofstream(root / "file") << "x";
  EXPECT_THAT(ListRepository(root / "file"), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ListRepository, TheIdentityChangesWithAnyFileAndOnlyThen) {
  const TemporaryDirectory root;
  PublishFake(root.path(), "mnist", 5);
  std::set<uint64_t> seen = {IdentityOf(root, 5)};
  EXPECT_TRUE(seen.contains(IdentityOf(root, 5)));
  std::ofstream(root / "mnist/5/model.pt") << "half";
  EXPECT_TRUE(seen.insert(IdentityOf(root, 5)).second);
  std::ofstream(root / "mnist/5/model.pt", std::ios::app) << " whole";
  EXPECT_TRUE(seen.insert(IdentityOf(root, 5)).second);
  std::filesystem::last_write_time(root / "mnist/5/manifest.json",
                                   std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_TRUE(seen.insert(IdentityOf(root, 5)).second);
  PublishFake(root.path(), "mnist", 6);
  EXPECT_FALSE(seen.insert(IdentityOf(root, 5)).second);
}

}  // namespace
}  // namespace millrace
