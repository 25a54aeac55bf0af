#include "common/batch_client.h"

#include <atomic>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/grpc_server.h"
#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.grpc.pb.h"
#include "tests/services/data/data_life.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr absl::Duration kPatience = absl::Seconds(30);

class BatchClientTest : public TinyDataTest {
 protected:
  BatchClient::Options Options() { return {.addresses = {address_}, .plan = plan_, .image_bytes = kImageBytes}; }

  static BatchKey Train(uint64_t epoch, uint64_t step, uint32_t slot) { return {v1::SPLIT_TRAIN, epoch, step, slot}; }

  void ExpectSamples(const absl::StatusOr<v1::Batch>& batch, const BatchKey& key) {
    ASSERT_THAT(batch, IsOk());
    ExpectBatch(*batch, key);
  }

  const std::string address_ = "unix:" + (directory_ / "socket").string();
};

TEST_F(BatchClientTest, GetsWhatWasRequestedInAnyOrder) {
  DataLife life(address_, dataset_);
  BatchClient client(Options());
  const std::vector<BatchKey> keys = {
      Train(0, 5, 0), Train(0, 5, 1), Train(0, 5, 3), Train(7, 0, 2), {v1::SPLIT_VALIDATION, 0, 1, 0}};
  ASSERT_THAT(client.Request(keys), IsOk());
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) ExpectSamples(client.Get(*key, kPatience), *key);
  EXPECT_EQ(life.data_metrics.of(v1::SPLIT_TRAIN).batches.Value(), 4);
  EXPECT_EQ(life.data_metrics.of(v1::SPLIT_VALIDATION).batches.Value(), 1);

  // Each is handed over once.
  EXPECT_THAT(client.Get(keys[0], kPatience),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("step 5 slot 0")));
  ASSERT_THAT(client.Request(keys), IsOk());
  ExpectSamples(client.Get(keys[0], kPatience), keys[0]);
}

TEST_F(BatchClientTest, SaysWhatItWaitsFor) {
  BatchClient client(Options());
  const BatchKey key = Train(2, 3, 1);
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  EXPECT_THAT(client.Get(key, absl::Milliseconds(20)),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       AllOf(HasSubstr("train epoch 2 step 3 slot 1"), HasSubstr(address_), HasSubstr("ago"))));
  // Started before the service: found when it comes.
  const DataLife life(address_, dataset_);
  ExpectSamples(client.Get(key, kPatience), key);
}

TEST_F(BatchClientTest, AsksAgainAfterARestart) {
  auto life = std::make_unique<DataLife>(address_, dataset_);
  BatchClient client(Options());
  const BatchKey first = Train(0, 0, 0);
  ASSERT_THAT(client.Request({&first, 1}), IsOk());
  ExpectSamples(client.Get(first, kPatience), first);

  // The second life takes the requests but dies before it has a dataset.
  life.reset();
  life = std::make_unique<DataLife>(address_, nullptr);
  const std::vector<BatchKey> keys = {Train(0, 1, 0), Train(0, 1, 1), Train(0, 4, 2)};
  ASSERT_THAT(client.Request(keys), IsOk());
  ASSERT_TRUE(Eventually([&] { return life->data_metrics.streams.Value() == 1; }));
  EXPECT_THAT(client.Get(keys[0], absl::Milliseconds(20)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  life.reset();

  life = std::make_unique<DataLife>(address_, dataset_);
  for (const BatchKey& key : keys) ExpectSamples(client.Get(key, kPatience), key);
}

TEST_F(BatchClientTest, ServiceThatDrains) {
  auto life = std::make_unique<DataLife>(address_, nullptr);
  BatchClient client(Options());
  const BatchKey key = Train(0, 0, 0);
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  ASSERT_TRUE(Eventually([&] { return life->data_metrics.streams.Value() == 1; }));
  life->service.Drain();
  life.reset();
  life = std::make_unique<DataLife>(address_, dataset_);
  ExpectSamples(client.Get(key, kPatience), key);
}

TEST_F(BatchClientTest, RefusalsArePermanent) {
  const DataLife life(address_, dataset_);
  const BatchKey key = Train(0, 0, 0);
  {
    plan_.set_fingerprint("another");
    BatchClient client(Options());
    ASSERT_THAT(client.Request({&key, 1}), IsOk());
    EXPECT_THAT(client.Get(key, kPatience), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another")));
  }
  {
    plan_.clear_fingerprint();
    BatchClient client(Options());
    const BatchKey impossible = Train(0, 99, 0);
    ASSERT_THAT(client.Request({&impossible, 1}), IsOk());
    EXPECT_THAT(client.Get(impossible, kPatience), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("step 99")));
  }
}

TEST_F(BatchClientTest, BoundsWhatIsAskedFor) {
  BatchClient client(Options());
  std::vector<BatchKey> keys;
  for (uint64_t i = 0; i < BatchRequests::kKeysMax; ++i) keys.push_back(Train(i, 0, 0));
  ASSERT_THAT(client.Request(keys), IsOk());
  ASSERT_THAT(client.Request(keys), IsOk());  // nothing new
  const BatchKey one_more = Train(5000, 0, 0);
  EXPECT_THAT(client.Request({&one_more, 1}), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1024")));
  client.Forget({keys.data(), 1});
  EXPECT_THAT(client.Request({&one_more, 1}), IsOk());
}

// Forgotten batches are still on their way and count at the service: asking for as many again must not go over its
// limit.
TEST_F(BatchClientTest, ForgettingDoesNotOverrunTheCredits) {
  const DataLife life(address_, dataset_);
  BatchClient client(Options());
  std::vector<BatchKey> keys;
  for (int round = 0; round < 20; ++round) {
    client.Forget(keys);
    keys.clear();
    for (uint64_t i = 0; i < BatchRequests::kKeysMax / 4; ++i) {
      for (uint32_t slot = 0; slot < 4; ++slot) keys.push_back(Train(1000 * round + i, round % 5, slot));
    }
    ASSERT_THAT(client.Request(keys), IsOk());
  }
  for (const BatchKey& key : keys) ExpectSamples(client.Get(key, kPatience), key);
}

TEST_F(BatchClientTest, ForgottenAndRequestedAgain) {
  const DataLife life(address_, dataset_);
  BatchClient client(Options());
  const BatchKey key = Train(0, 0, 0);
  for (int i = 0; i < 100; ++i) {
    ASSERT_THAT(client.Request({&key, 1}), IsOk());
    if (i % 3 == 0) ExpectSamples(client.Get(key, kPatience), key);
    client.Forget({&key, 1});
  }
}

TEST_F(BatchClientTest, WholeSplitInOrder) {
  const DataLife life(address_, dataset_);
  BatchClient client(Options());
  std::vector<uint8_t> first_pixels;
  ASSERT_THAT(ForEachBatch(client, v1::SPLIT_TEST, 3, kPatience, /*stop=*/{},
                           [&](const v1::Batch& batch) {
                             for (uint32_t i = 0; i < batch.samples(); ++i) {
                               first_pixels.push_back(static_cast<uint8_t>(batch.images()[i * kImageBytes]));
                             }
                             return absl::OkStatus();
                           }),
              IsOk());
  ASSERT_EQ(first_pixels.size(), 20);
  for (size_t i = 0; i < first_pixels.size(); ++i) EXPECT_EQ(first_pixels[i], i);

  EXPECT_THAT(ForEachBatch(client, v1::SPLIT_TEST, 3, kPatience, /*stop=*/{},
                           [](const v1::Batch&) { return absl::AbortedError("enough"); }),
              StatusIs(absl::StatusCode::kAborted));

  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_THAT(ForEachBatch(client, v1::SPLIT_TEST, 3, kPatience, stopped.get_token(),
                           [](const v1::Batch&) { return absl::OkStatus(); }),
              StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(BatchClientTest, ManyThreads) {
  const DataLife life(address_, dataset_);
  BatchClient client(Options());
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t step = 0; step < 6; ++step) {
        const std::vector<BatchKey> keys = {Train(thread, step, 0), Train(thread, step, 1)};
        ASSERT_THAT(client.Request(keys), IsOk());
        for (const BatchKey& key : keys) ExpectSamples(client.Get(key, kPatience), key);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Answers every range with one batch, whose fault is as it was told.
class FaultyService final : public v1::DataService::Service {
 public:
  explicit FaultyService(int faulty_batches) : faults_left_(faulty_batches) {}

  int batches_sent() const { return batches_sent_; }

 private:
  grpc::Status StreamBatches(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::Batch, v1::BatchRequest>* stream) override {
    v1::BatchRequest request;
    while (stream->Read(&request)) {
      if (!request.has_range()) continue;
      v1::Batch batch;
      batch.set_split(request.range().split());
      batch.set_epoch(request.range().epoch());
      batch.set_step(request.range().step());
      batch.set_slot(request.range().slot_begin());
      batch.set_step_samples(2);
      batch.set_samples(1);
      batch.set_images(std::string(16, 'i'));
      batch.set_labels("l");
      batch.set_checksum(Checksum64(batch.images() + batch.labels()));
      if (faults_left_-- > 0) (*batch.mutable_images())[5] ^= 1;
      ++batches_sent_;
      stream->Write(batch);
    }
    return grpc::Status::OK;
  }

  std::atomic<int> faults_left_;
  std::atomic<int> batches_sent_ = 0;
};

TEST_F(BatchClientTest, DamagedBatchIsAskedForAgain) {
  FaultyService service(2);
  const auto server = GrpcServer::Start({.address = address_}, {&service}).value();
  BatchClient client(Options());
  const BatchKey key = Train(0, 0, 0);
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  const absl::StatusOr<v1::Batch> batch = client.Get(key, kPatience);
  ASSERT_THAT(batch, IsOk());
  EXPECT_EQ(batch->images(), std::string(16, 'i'));
  EXPECT_EQ(service.batches_sent(), 3);
}

TEST_F(BatchClientTest, DamageWithoutEndIsAnError) {
  FaultyService service(1000);
  const auto server = GrpcServer::Start({.address = address_}, {&service}).value();
  BatchClient client(Options());
  const BatchKey key = Train(0, 0, 0);
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  EXPECT_THAT(client.Get(key, kPatience), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("checksum")));
}

TEST_F(BatchClientTest, ImagesOfAnotherSizeAreAnError) {
  FaultyService service(0);
  const auto server = GrpcServer::Start({.address = address_}, {&service}).value();
  BatchClient client({.addresses = {address_}, .plan = plan_, .image_bytes = 784});
  const BatchKey key = Train(0, 0, 0);
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  EXPECT_THAT(client.Get(key, kPatience), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("784")));
}

}  // namespace
}  // namespace millrace
