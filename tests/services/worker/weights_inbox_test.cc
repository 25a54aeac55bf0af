#include "services/worker/weights_inbox.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;

class WeightsInboxTest : public testing::TestWithParam<v1::NumberFormat> {
 protected:
  absl::Status Receive(uint64_t version, uint64_t offset, const std::vector<float>& values, size_t cut_bytes = 0) {
    bytes_.resize(EncodedBytes(GetParam(), values.size()));
    Encode(GetParam(), values, bytes_);
    bytes_.resize(bytes_.size() - cut_bytes);
    piece_ = bytes_;
    return inbox_.Receive({{version, offset}, ByteRope({&piece_, 1}, 0, piece_.size())});
  }
  absl::Status ReceiveFetched(uint64_t offset, const std::vector<float>& values) {
    bytes_.resize(EncodedBytes(GetParam(), values.size()));
    Encode(GetParam(), values, bytes_);
    piece_ = bytes_;
    return inbox_.ReceiveFetched(offset, ByteRope({&piece_, 1}, 0, piece_.size()));
  }

  std::vector<float> range_ = std::vector<float>(3);
  WeightsInbox inbox_{range_, GetParam()};

 private:
  std::vector<std::byte> bytes_;
  ByteRope::Piece piece_;
};

TEST_P(WeightsInboxTest, HoldsAVersionOnceAllOfItCame) {
  EXPECT_THAT(Receive(7, 0, {1, 2}), IsOk());
  EXPECT_TRUE(inbox_.arriving());
  EXPECT_EQ(inbox_.version(), std::nullopt);
  EXPECT_THAT(Receive(7, 2, {3}), IsOk());
  EXPECT_EQ(inbox_.version(), 7);
  EXPECT_THAT(range_, ElementsAre(1, 2, 3));
}

TEST_P(WeightsInboxTest, RefusesWhatDoesNotFit) {
  EXPECT_THAT(Receive(7, 0, {1, 2, 3, 4}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Receive(7, 0, {}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Receive(7, 0, {1, 2}, /*cut_bytes=*/EncodedBytes(GetParam(), 2) - 1),
              StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Receive(7, 1, {2}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Receive(7, 0, {1, 2}), IsOk());
  EXPECT_THAT(Receive(8, 2, {3}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Receive(7, 2, {3, 4}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_EQ(inbox_.version(), std::nullopt);
}

TEST_P(WeightsInboxTest, AFetchedVersionComesInOrderAndWhole) {
  inbox_.BeginFetch();
  EXPECT_THAT(ReceiveFetched(1, {2}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(ReceiveFetched(0, {4, 5}), IsOk());
  EXPECT_THAT(inbox_.Fetched(5), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_EQ(inbox_.version(), std::nullopt);
  EXPECT_THAT(ReceiveFetched(2, {6, 7}), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(ReceiveFetched(2, {6}), IsOk());
  EXPECT_THAT(inbox_.Fetched(5), IsOk());
  EXPECT_EQ(inbox_.version(), 5);
  EXPECT_THAT(range_, ElementsAre(4, 5, 6));
}

// What came of the stream before is a mixture after a fetch.
TEST_P(WeightsInboxTest, AFetchSpoilsWhatIsArriving) {
  EXPECT_THAT(Receive(7, 0, {1, 2}), IsOk());
  inbox_.BeginFetch();
  EXPECT_THAT(ReceiveFetched(0, {4, 5, 6}), IsOk());
  EXPECT_THAT(inbox_.Fetched(5), IsOk());
  EXPECT_THAT(Receive(7, 2, {3}), IsOk());
  EXPECT_EQ(inbox_.version(), std::nullopt);
  EXPECT_TRUE(inbox_.must_fetch(7));
}

INSTANTIATE_TEST_SUITE_P(Formats, WeightsInboxTest,
                         testing::Values(v1::NUMBER_FORMAT_FLOAT32, v1::NUMBER_FORMAT_BFLOAT16,
                                         v1::NUMBER_FORMAT_FLOAT16, v1::NUMBER_FORMAT_MXINT8),
                         [](const auto& info) { return v1::NumberFormat_Name(info.param); });

}  // namespace
}  // namespace millrace
