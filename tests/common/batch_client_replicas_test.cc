// Several replicas of the data service: killed, silent, of another dataset, gone and back.
#include <atomic>
#include <memory>
#include <regex>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/batch_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.grpc.pb.h"
#include "prometheus/counter.h"
#include "tests/services/data/data_life.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kPatience = absl::Seconds(30);

// Answers as the service does, from a client of its own, but only so many batches of each stream; then it is silent, or
// breaks the stream off.
class FailingService final : public v1::DataService::Service {
 public:
  enum class Then { kSilent, kBreak };
  FailingService(const std::string& source, v1::BatchPlan plan, int batches, Then then)
      : source_({.addresses = {source}, .plan = std::move(plan)}), batches_(batches), then_(then) {}

  std::atomic<int> streams = 0;

 private:
  grpc::Status StreamBatches(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::Batch, v1::BatchRequest>* stream) override {
    ++streams;
    int left = batches_;
    for (v1::BatchRequest request; stream->Read(&request);) {
      const v1::BatchRange& range = request.range();
      for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
        for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
          if (left-- <= 0) {
            if (then_ == Then::kBreak) return {grpc::StatusCode::UNAVAILABLE, "killed"};
            continue;
          }
          const BatchKey key{range.split(), range.epoch(), step, slot};
          EXPECT_THAT(source_.Request({&key, 1}), IsOk());
          stream->Write(source_.Get(key, kPatience).value());
        }
      }
    }
    return grpc::Status::OK;
  }

  BatchClient source_;
  const int batches_;
  const Then then_;
};

class BatchClientReplicasTest : public TinyDataTest {
 protected:
  std::string Socket(const std::string& name) const { return "unix:" + (directory_ / name).string(); }

  BatchClient::Options Options() {
    return {.addresses = {a_, b_},
            .plan = plan_,
            .image_bytes = kImageBytes,
            .breaks = &breaks_,
            .choice = {.patience = absl::Milliseconds(500), .return_after = never_}};
  }
  BatchClient::Options OptionsWithReturn() {
    never_ = absl::Milliseconds(10);
    return Options();
  }

  // An epoch, another one each time, all of it asked for at once: each batch comes, once, with its own samples.
  void GetAnEpoch(BatchClient& client) {
    std::vector<BatchKey> keys;
    for (uint64_t step = 0; step < 6; ++step) {
      for (uint32_t slot = 0; slot < 4; ++slot) keys.push_back({v1::SPLIT_TRAIN, epoch_, step, slot});
    }
    ++epoch_;
    ASSERT_THAT(client.Request(keys), IsOk());
    for (const BatchKey& key : keys) {
      const absl::StatusOr<v1::Batch> batch = client.Get(key, kPatience);
      ASSERT_THAT(batch, IsOk());
      ExpectBatch(*batch, key);
      EXPECT_THAT(client.Get(key, absl::ZeroDuration()), StatusIs(absl::StatusCode::kFailedPrecondition));
    }
  }

  static double Sent(DataLife& life) { return life.data_metrics.of(v1::SPLIT_TRAIN).batches.Value(); }

  std::shared_ptr<const Dataset> AnotherDataset() const {
    const auto directory = directory_ / "another";
    std::filesystem::create_directory(directory);
    TinyDataset{.train_count = 90}.Write(directory);
    return Dataset::Load(FindDatasetFiles(directory).value(), {}).value();
  }

  const std::string a_ = Socket("a"), b_ = Socket("b");
  prometheus::Counter breaks_;
  absl::Duration never_ = absl::InfiniteDuration();
  uint64_t epoch_ = 0;
};

TEST_F(BatchClientReplicasTest, OnlyThePreferredIsAsked) {
  DataLife a(a_, dataset_), b(b_, dataset_);
  BatchClient client(Options());
  GetAnEpoch(client);
  EXPECT_EQ(Sent(a), 24);
  EXPECT_EQ(Sent(b), 0);
}

TEST_F(BatchClientReplicasTest, OneThatDiesInTheMiddleIsReplacedAndNothingComesTwiceOrNever) {
  DataLife b(b_, dataset_);
  FailingService dying(b_, plan_, 7, FailingService::Then::kBreak);
  const auto server = GrpcServer::Start({.address = a_}, {&dying}).value();
  BatchClient client(Options());
  GetAnEpoch(client);
  EXPECT_EQ(dying.streams, 1);
  EXPECT_EQ(breaks_.Value(), 1);
  EXPECT_EQ(Sent(b), 24) << "7 through the dying one, the other 17 without it";
}

TEST_F(BatchClientReplicasTest, OneThatFallsSilentInTheMiddleIsReplaced) {
  DataLife b(b_, dataset_);
  FailingService silent(b_, plan_, 7, FailingService::Then::kSilent);
  const auto server = GrpcServer::Start({.address = a_}, {&silent}).value();
  BatchClient client(Options());
  GetAnEpoch(client);
  EXPECT_EQ(silent.streams, 1);
  EXPECT_EQ(breaks_.Value(), 1);
  EXPECT_EQ(Sent(b), 24);
}

TEST_F(BatchClientReplicasTest, OneThatIsBackIsGoneBackTo) {
  auto a = std::make_unique<DataLife>(a_, dataset_);
  DataLife b(b_, dataset_);
  BatchClient client(OptionsWithReturn());
  GetAnEpoch(client);
  a.reset();
  GetAnEpoch(client);
  EXPECT_EQ(Sent(b), 24);
  // Up, but of no use before it has its dataset.
  a = std::make_unique<DataLife>(a_, nullptr);
  GetAnEpoch(client);
  EXPECT_EQ(Sent(b), 48);
  a->service.SetDataset(dataset_);
  ASSERT_TRUE(Eventually([&] { return a->data_metrics.streams.Value() == 1; }));
  GetAnEpoch(client);
  EXPECT_EQ(Sent(*a), 24);
  EXPECT_EQ(Sent(b), 48);
}

TEST_F(BatchClientReplicasTest, OneThatIsBackWithAnotherDatasetIsNot) {
  auto a = std::make_unique<DataLife>(a_, AnotherDataset());
  DataLife b(b_, dataset_);
  BatchClient client(OptionsWithReturn());
  testing::internal::CaptureStderr();
  GetAnEpoch(client);
  // Looked at, again and again, but not gone back to.
  const auto looks = [&] {
    const std::string text = a->metrics.Render();
    const std::regex handled("grpc_server_handled_total\\{[^}]*/IdentifyDataset\"[^}]*\\} ([0-9]+)");
    std::smatch match;
    return std::regex_search(text, match, handled) ? std::stoi(match[1]) : 0;
  };
  ASSERT_TRUE(Eventually([&] { return looks() >= 3; })) << a->metrics.Render();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("A DATA SERVICE REFUSES"), HasSubstr(a_), HasSubstr("not the one with fingerprint"),
                    Not(HasSubstr("going back"))));
  GetAnEpoch(client);
  EXPECT_EQ(Sent(*a), 0);
  a.reset();
  a = std::make_unique<DataLife>(a_, dataset_);
  ASSERT_TRUE(Eventually([&] { return a->data_metrics.streams.Value() == 1; }));
}

TEST_F(BatchClientReplicasTest, BothGoneTheWaitNamesBothAndEitherMayComeBack) {
  auto a = std::make_unique<DataLife>(a_, dataset_);
  auto b = std::make_unique<DataLife>(b_, dataset_);
  BatchClient client(Options());
  GetAnEpoch(client);
  a.reset();
  b.reset();
  const BatchKey key{v1::SPLIT_TRAIN, 99, 0, 0};
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  absl::Status waiting;
  ASSERT_TRUE(Eventually([&] {
    waiting = client.Get(key, absl::Milliseconds(20)).status();
    return waiting.message().find("none of 2 answers") != std::string::npos;
  })) << waiting;
  EXPECT_THAT(waiting, StatusIs(absl::StatusCode::kDeadlineExceeded,
                                AllOf(HasSubstr("train epoch 99 step 0 slot 0 from a data service (none of 2"),
                                      HasSubstr(a_), HasSubstr(b_))));
  b = std::make_unique<DataLife>(b_, dataset_);
  EXPECT_THAT(client.Get(key, kPatience), IsOk());
  GetAnEpoch(client);
}

TEST_F(BatchClientReplicasTest, AllWithAnotherDatasetIsAnErrorThatNamesThem) {
  DataLife a(a_, AnotherDataset()), b(b_, AnotherDataset());
  BatchClient client(Options());
  const BatchKey key{v1::SPLIT_TRAIN, 0, 0, 0};
  ASSERT_THAT(client.Request({&key, 1}), IsOk());
  EXPECT_THAT(client.Get(key, kPatience),
              StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr(a_), HasSubstr(b_))));
}

}  // namespace
}  // namespace millrace
