#include "common/tensor/safetensors.h"

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "common/files.h"
#include "common/hashing.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  std::string Path() const { return directory_ / "file.safetensors"; }

  // A file with this header and this many zeros behind it.
  absl::Status ReadBack(const std::string& header, size_t data_bytes) {
    const uint64_t size = header.size();
    std::string bytes(sizeof(size), '\0');
    std::memcpy(bytes.data(), &size, sizeof(size));
    bytes += header + std::string(data_bytes, '\0');
    EXPECT_THAT(WriteFileAtomically(Path(), bytes), IsOk());
    return SafetensorsFile::Read(Path()).status();
  }

  TemporaryDirectory directory_;
};

TEST_F(SafetensorsTest, RoundTrip) {
  const std::vector<float> a = {1, -2.5f, 3e-40f}, b = {4, 5, 6, 7, 8, 9};
  const auto written =
      WriteSafetensors(Path(), {{"b", {2, 3}, b}, {"a", {3}, a}, {"none", {0}, {}}, {"one", {}, {a.data(), 1}}},
                       {{"version", "812"}, {"text", "\"quoted\"\n"}});
  ASSERT_THAT(written, IsOk());
  EXPECT_EQ(written->bytes, std::filesystem::file_size(Path()));
  EXPECT_EQ(written->sha256, *Sha256File(Path()));

  auto file = SafetensorsFile::Read(Path());
  ASSERT_THAT(file, IsOk());
  const SafetensorsFile moved = *std::move(file);
  EXPECT_EQ(moved.metadata().at("text"), "\"quoted\"\n");
  ASSERT_NE(moved.Find("a"), nullptr);
  EXPECT_THAT(moved.Find("a")->values, ElementsAre(1, -2.5f, 3e-40f));
  EXPECT_THAT(moved.Find("b")->shape, ElementsAre(2, 3));
  EXPECT_THAT(moved.Find("b")->values, ElementsAre(4, 5, 6, 7, 8, 9));
  EXPECT_EQ(moved.Find("none")->values.size(), 0u);
  EXPECT_THAT(moved.Find("one")->values, ElementsAre(1));
  EXPECT_EQ(moved.Find("absent"), nullptr);
}

TEST_F(SafetensorsTest, WritingRefusesWhatReadingWould) {
  const std::vector<float> values(6);
  EXPECT_THAT(WriteSafetensors(Path(), {{"a", {5}, values}}, {}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteSafetensors(Path(), {{"a", {6}, values}, {"a", {6}, values}}, {}),
              StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteSafetensors(Path(), {{"__metadata__", {6}, values}}, {}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_FALSE(std::filesystem::exists(Path()));
}

TEST_F(SafetensorsTest, FailedWriteLeavesTheOldFile) {
  const std::vector<float> values = {1, 2};
  ASSERT_THAT(WriteSafetensors(Path(), {{"a", {2}, values}}, {}), IsOk());
  std::filesystem::create_directory(Path() + ".tmp");  // the temporary file cannot be made
  const auto written = WriteSafetensors(Path(), {{"a", {1}, {values.data(), 1}}}, {});
  EXPECT_FALSE(written.ok());
  EXPECT_THAT(std::string(written.status().message()), HasSubstr(Path()));
  EXPECT_EQ(SafetensorsFile::Read(Path())->Find("a")->values.size(), 2u);
}

TEST_F(SafetensorsTest, FullDisk) {
  const std::vector<float> values(1 << 20);
  // The temporary file leads to a device without room: what cannot be written leaves nothing behind.
  std::filesystem::create_symlink("/dev/full", Path() + ".tmp");
  EXPECT_THAT(WriteSafetensors(Path(), {{"a", {1 << 20}, values}}, {}), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_FALSE(std::filesystem::exists(Path()));
  EXPECT_FALSE(std::filesystem::is_symlink(Path() + ".tmp"));
}

TEST_F(SafetensorsTest, MissingFile) {
  EXPECT_THAT(SafetensorsFile::Read(Path()), StatusIs(StatusCode::kNotFound, HasSubstr(Path())));
  EXPECT_THAT(SafetensorsFile::Read(directory_.path()), testing::Not(IsOk()));
}

TEST_F(SafetensorsTest, EveryTruncationIsFound) {
  const std::vector<float> values = {1, 2, 3};
  ASSERT_THAT(WriteSafetensors(Path(), {{"a", {3}, values}}, {{"k", "v"}}), IsOk());
  const std::string whole = *ReadFile(Path(), 1 << 20);
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_THAT(WriteFileAtomically(Path(), whole.substr(0, size)), IsOk());
    EXPECT_THAT(SafetensorsFile::Read(Path()), StatusIs(StatusCode::kDataLoss)) << size;
  }
  ASSERT_THAT(WriteFileAtomically(Path(), whole + "x"), IsOk());
  EXPECT_THAT(SafetensorsFile::Read(Path()), StatusIs(StatusCode::kDataLoss));
}

TEST_F(SafetensorsTest, BadHeaders) {
  EXPECT_THAT(ReadBack(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), IsOk());
  const std::vector<std::pair<std::string, size_t>> bad = {
      {"", 0},
      {"[]", 0},
      {"{", 0},
      {R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8},
      {R"({"a":7})", 0},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,18446744073709551612]}})", 0},
      {R"({"__metadata__":{"k":1}})", 0},
      {R"({"__metadata__":"k"})", 0},
      {std::string(100000, '['), 0},
  };
  for (const auto& [header, data_bytes] : bad) {
    EXPECT_THAT(ReadBack(header, data_bytes), StatusIs(StatusCode::kDataLoss)) << header.substr(0, 200);
  }
}

TEST_F(SafetensorsTest, HeaderSizeOverTheLimit) {
  const std::string bytes = std::string(7, '\0') + '\x7f' + "{}";
  ASSERT_THAT(WriteFileAtomically(Path(), bytes), IsOk());
  EXPECT_THAT(SafetensorsFile::Read(Path()), StatusIs(StatusCode::kDataLoss, HasSubstr("header")));
}

}  // namespace
}  // namespace millrace
