#include "services/data/batch_encoding.h"

#include <string>
#include <vector>

#include "common/hashing.h"
#include "google/protobuf/util/message_differencer.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.pb.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

class BatchEncodingTest : public testing::Test {
 protected:
  BatchEncodingTest() {
    TinyDataset{.train_count = 300}.Write(directory_.path());
    dataset_ = Dataset::Load(FindDatasetFiles(directory_.path()).value(), {}).value();
  }

  // What protobuf's own encoder and decoder make of the same batch must agree with ours.
  void ExpectRoundTrip(const BatchKey& key, const BatchSamples& samples) {
    v1::Batch expected;
    expected.set_split(key.split);
    expected.set_epoch(key.epoch);
    expected.set_step(key.step);
    expected.set_slot(key.slot);
    expected.set_step_samples(samples.step_samples);
    expected.set_samples(static_cast<uint32_t>(samples.indices.size()));
    for (const uint64_t index : samples.indices) {
      const auto image = dataset_->train().image(index);
      expected.mutable_images()->append(image.begin(), image.end());
      expected.mutable_labels()->push_back(static_cast<char>(dataset_->train().label(index)));
    }
    expected.set_checksum(Checksum64(expected.images() + expected.labels()));

    expected.set_visits(samples.visits);

    grpc::ByteBuffer buffer = EncodeBatch(key, samples, dataset_->train());
    EXPECT_LE(buffer.Length(), expected.images().size() + expected.labels().size() + kBatchOverheadBytes);
    v1::Batch decoded;
    ASSERT_TRUE(grpc::SerializationTraits<v1::Batch>::Deserialize(&buffer, &decoded).ok());
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(decoded, expected));
  }

  const TemporaryDirectory directory_;
  std::shared_ptr<const Dataset> dataset_;
};

TEST_F(BatchEncodingTest, IsOrdinaryProtobuf) {
  ExpectRoundTrip({v1::SPLIT_TRAIN, 3, 812, 5},
                  {.step_samples = 128, .indices = {7, 299, 0, 7}, .visits = 0x123456789abcdef0});
  std::vector<uint64_t> many;
  for (uint64_t i = 0; i < 200; ++i) many.push_back(299 - i);  // lengths of two bytes
  ExpectRoundTrip({v1::SPLIT_VALIDATION, 0, 0, 0}, {.step_samples = 200, .indices = many});
}

TEST_F(BatchEncodingTest, AugmentsWhatIsTrainedOnAndNothingElse) {
  v1::Augmentation strengths;
  strengths.set_shift(2);
  strengths.set_elastic(1);
  const Augmenter augmenter = Augmenter::Create(strengths, 9, {1, 4, 4}).value();
  const BatchSamples samples = {.step_samples = 3, .indices = {7, 299, 0}};
  const auto encode = [&](const BatchKey& key, const Augmenter* with) {
    grpc::ByteBuffer buffer = EncodeBatch(key, samples, dataset_->train(), with);
    v1::Batch batch;
    EXPECT_TRUE(grpc::SerializationTraits<v1::Batch>::Deserialize(&buffer, &batch).ok());
    EXPECT_EQ(batch.checksum(), Checksum64(batch.images() + batch.labels()));
    return batch;
  };
  const BatchKey train = {v1::SPLIT_TRAIN, 3, 0, 0}, validation = {v1::SPLIT_VALIDATION, 0, 0, 0};
  const v1::Batch plain = encode(train, nullptr), augmented = encode(train, &augmenter);
  std::string expected = plain.images();
  EpochAugmenter at_work(augmenter, 3);
  for (size_t i = 0; i < 3; ++i) {
    at_work.Distort(samples.indices[i], {reinterpret_cast<uint8_t*>(expected.data()) + i * 16, 16});
  }
  EXPECT_NE(augmented.images(), plain.images());
  EXPECT_EQ(augmented.images(), expected);
  EXPECT_EQ(augmented.labels(), plain.labels());
  for (const v1::Split split : {v1::SPLIT_VALIDATION, v1::SPLIT_TEST}) {
    EXPECT_EQ(encode({split, 0, 0, 0}, &augmenter).images(), encode(validation, nullptr).images());
  }
}

TEST_F(BatchEncodingTest, EmptySlot) {
  ExpectRoundTrip({v1::SPLIT_TRAIN, 0, 421, 0}, {.step_samples = 3, .indices = {}});
}

TEST_F(BatchEncodingTest, LargestNumbersFitTheHeader) {
  constexpr uint64_t kMax = ~uint64_t{0};
  ExpectRoundTrip({v1::SPLIT_TEST, kMax, kMax, ~uint32_t{0}}, {.step_samples = kMax, .indices = {1}, .visits = kMax});
}

}  // namespace
}  // namespace millrace
