#include "common/hashing.h"

#include <string>

#include "common/files.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

// FIPS 180-4 examples.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256Test, PiecesGiveTheDigestOfTheWhole) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.FinishHex(), kAbc);
}

TEST(Sha256Test, OfAFile) {
  TemporaryDirectory directory;
  const std::string contents(1'000'000, 'a');  // longer than one read; digest from FIPS 180-4
  ASSERT_THAT(WriteFileAtomically(directory / "f", contents), IsOk());
  EXPECT_EQ(Sha256File(directory / "f").value(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_THAT(Sha256File(directory / "none"), StatusIs(absl::StatusCode::kNotFound, ::testing::HasSubstr("none")));
  EXPECT_FALSE(Sha256File(directory.path()).ok());
}

TEST(ChecksumTest, KnownAnswer) {
  EXPECT_EQ(Checksum64(""), 0x2D06800538D394C2u);  // XXH3-64 of nothing, seed 0
}

TEST(ChecksumTest, StreamingEqualsOneShotHoweverItIsCut) {
  std::string data(10'000, 0);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31);
  for (const size_t piece : {1u, 7u, 256u, 4096u, 10'000u}) {
    Checksum checksum;
    for (size_t at = 0; at < data.size(); at += piece) checksum.Update(std::string_view(data).substr(at, piece));
    EXPECT_EQ(checksum.Value(), Checksum64(data)) << "pieces of " << piece;
    checksum.Reset();
    EXPECT_EQ(checksum.Value(), Checksum64(""));
  }
}

TEST(ChecksumTest, EverySingleBitMatters) {
  std::string data(64, 'x');
  const uint64_t good = Checksum64(data);
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_NE(Checksum64(data), good) << "bit " << bit;
    data[bit / 8] ^= static_cast<char>(1 << bit % 8);
  }
}

}  // namespace
}  // namespace millrace
