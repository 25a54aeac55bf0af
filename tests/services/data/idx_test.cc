#include "services/data/idx.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

class IdxTest : public testing::Test {
 protected:
  absl::StatusOr<IdxArray> Read(const std::string& bytes, int rank, const IdxLimits& limits = {}) {
    WriteBytes(path_, bytes);
    return ReadIdx(path_, rank, limits);
  }

  // The error names the file and, in some words, the fault.
  void ExpectFault(const std::string& bytes, int rank, const std::string& fault, const IdxLimits& limits = {}) {
    EXPECT_THAT(Read(bytes, rank, limits), StatusIs(kDataLoss, AllOf(HasSubstr(path_.string()), HasSubstr(fault))));
  }

  const TemporaryDirectory directory_;
  const std::filesystem::path path_ = directory_ / "train-images-idx3-ubyte.gz";
  const std::string images_ = IdxBytes({2, 2, 3}, "abcdefghijkl");
};

TEST_F(IdxTest, ReadsRawAndGzipAlike) {
  for (const std::string& bytes : {images_, Gzip(images_)}) {
    const absl::StatusOr<IdxArray> array = Read(bytes, 3);
    ASSERT_THAT(array, IsOk());
    EXPECT_THAT(array->sizes, ElementsAre(2, 2, 3));
    EXPECT_EQ(std::string(array->span().begin(), array->span().end()), "abcdefghijkl");
    EXPECT_EQ(std::string(array->header.begin(), array->header.end()), images_.substr(0, 16));
  }
}

TEST_F(IdxTest, ReadsMoreThanOneBufferOfGzip) {
  std::string values(300'000, '\0');
  uint32_t state = 1;
  for (char& value : values) value = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  const absl::StatusOr<IdxArray> array = Read(Gzip(IdxBytes({300'000}, values)), 1);
  ASSERT_THAT(array, IsOk());
  EXPECT_EQ(std::string(array->span().begin(), array->span().end()), values);
}

TEST_F(IdxTest, MissingFile) {
  EXPECT_THAT(ReadIdx(directory_ / "none", 1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}
TEST_F(IdxTest, DirectoryInPlaceOfAFile) {
  EXPECT_THAT(ReadIdx(directory_.path(), 1), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a file")));
}
TEST_F(IdxTest, EmptyFile) { ExpectFault("", 3, "is empty"); }
TEST_F(IdxTest, WebPageSavedUnderTheName) {
  ExpectFault("<!DOCTYPE html><html>404", 3, "begins with \"<!DOCTYPE html>");
  ExpectFault("<!DOCTYPE html><html>404", 3, "web page");
}
TEST_F(IdxTest, OtherContents) { ExpectFault("PK\x03\x04 a zip file", 3, "neither gzip nor IDX"); }
TEST_F(IdxTest, ShortHeader) {
  ExpectFault(images_.substr(0, 9), 3, "ends inside its header: 9 of 16");
  ExpectFault(images_.substr(0, 1), 3, "ends inside its header: 1 of 16");
  ExpectFault(Gzip(images_.substr(0, 9)), 3, "ends inside its header: 9 of 16");
}
TEST_F(IdxTest, OtherElementType) {
  std::string bytes = images_;
  bytes[2] = 0x0D;
  ExpectFault(bytes, 3, "holds float32 values");
  bytes[2] = 0x77;
  ExpectFault(bytes, 3, "unknown type 0x77");
}
TEST_F(IdxTest, ImagesAndLabelsConfused) {
  ExpectFault(images_, 1, "has 3 dimensions, not 1 (is it an images file?)");
  ExpectFault(IdxBytes({16}, "0123456789abcdef"), 3, "has 1 dimensions, not 3 (is it a labels file?)");
}
TEST_F(IdxTest, ShortBody) {
  ExpectFault(images_.substr(0, images_.size() - 1), 3, "has 27 bytes, but its header declares 28");
  ExpectFault(Gzip(images_.substr(0, images_.size() - 1)), 3, "holds 11 values, but its header declares 12");
}
TEST_F(IdxTest, TrailingBytes) {
  ExpectFault(images_ + "x", 3, "has 29 bytes, but its header declares 28");
  ExpectFault(Gzip(images_ + "x"), 3, "more bytes than its header declares");
  ExpectFault(Gzip(images_) + "x", 3, "bytes follow the gzip stream");
  ExpectFault(Gzip(images_) + Gzip(images_), 3, "bytes follow the gzip stream");
}
TEST_F(IdxTest, DimensionOfSizeZero) { ExpectFault(IdxBytes({0, 28, 28}, ""), 3, "dimension 0 has size 0"); }
TEST_F(IdxTest, ProductOfSizesOverflows) {
  // 2^32 * 2^32 wraps to 0 in 64 bits.
  ExpectFault(IdxBytes({0x80000000, 0x80000000, 4}, ""), 3, "more than the limit");
  ExpectFault(IdxBytes({0xffffffff, 0xffffffff, 0xffffffff}, ""), 3, "more than the limit");
}
TEST_F(IdxTest, OverTheLimit) { ExpectFault(images_, 3, "more than the limit of 11 values", {.values_max = 11}); }
TEST_F(IdxTest, DeclaresMoreThanTheFileCanHold) {
  // Refused before 4 GB are allocated.
  ExpectFault(Gzip(IdxBytes({1000, 2000, 2000}, "abc")), 3, "bytes of gzip can hold");
}
TEST_F(IdxTest, GzipTruncatedAnywhere) {
  const std::string bytes = Gzip(images_);
  for (size_t size = 2; size < bytes.size(); ++size) ExpectFault(bytes.substr(0, size), 3, "");
  ExpectFault(bytes.substr(0, bytes.size() - 8), 3, "cut short");  // without CRC and length
}
TEST_F(IdxTest, GzipWithWrongCheckValues) {
  std::string bytes = Gzip(images_);
  bytes[bytes.size() - 8] ^= 1;
  ExpectFault(bytes, 3, "the gzip stream is damaged: incorrect data check");
  bytes = Gzip(images_);
  bytes[bytes.size() - 1] ^= 1;
  ExpectFault(bytes, 3, "the gzip stream is damaged: incorrect length check");
}

// A few bits of a gzip file mean nothing (padding before the check values, say): then the contents are still right.
TEST_F(IdxTest, NoFlippedBitOfGzipChangesTheContents) {
  const std::string intact = Gzip(images_);
  int refused = 0;
  for (size_t bit = 0; bit < intact.size() * 8; ++bit) {
    std::string bytes = intact;
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    const absl::StatusOr<IdxArray> array = Read(bytes, 3);
    if (!array.ok()) {
      ++refused;
      continue;
    }
    EXPECT_EQ(std::string(array->span().begin(), array->span().end()), "abcdefghijkl") << "bit " << bit;
  }
  EXPECT_GT(refused, intact.size() * 8 / 2);
}

RC_GTEST_FIXTURE_PROP(IdxTest, SurvivesAnyBytes, (const std::vector<uint8_t>& noise, bool sensible_start)) {
  std::string bytes = sensible_start ? images_.substr(0, 4) : "";
  bytes.append(noise.begin(), noise.end());
  (void)Read(bytes, 3);
}

}  // namespace
}  // namespace millrace
