#include "services/data/data_service.h"

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

// One client's StreamBatches call.
class Call {
 public:
  explicit Call(v1::DataService::Stub& stub, absl::Duration timeout = kPatience) {
    SetDeadline(context_, timeout);
    stream_ = stub.StreamBatches(&context_);
  }
  // A call that a failed test leaves open must not hold the server up.
  ~Call() {
    if (!finished_) context_.TryCancel();
    if (!finished_) (void)stream_->Finish();
  }

  void Send(const v1::BatchPlan& plan) {
    v1::BatchRequest request;
    *request.mutable_plan() = plan;
    stream_->Write(request);
  }
  void Ask(v1::Split split, uint64_t epoch, uint64_t step, uint64_t steps, uint32_t begin, uint32_t end) {
    v1::BatchRequest request;
    v1::BatchRange& range = *request.mutable_range();
    range.set_split(split);
    range.set_epoch(epoch);
    range.set_step(step);
    range.set_steps(steps);
    range.set_slot_begin(begin);
    range.set_slot_end(end);
    stream_->Write(request);
  }
  void SendNothing() { stream_->Write(v1::BatchRequest()); }
  std::optional<v1::Batch> Read() {
    v1::Batch batch;
    if (!stream_->Read(&batch)) return std::nullopt;
    return batch;
  }
  void AllAsked() { stream_->WritesDone(); }
  void Cancel() { context_.TryCancel(); }
  absl::Status Finish() {
    v1::Batch ignored;
    while (stream_->Read(&ignored)) {
    }
    finished_ = true;
    return FromGrpcStatus(stream_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::BatchRequest, v1::Batch>> stream_;
  bool finished_ = false;
};

class DataServiceTest : public TinyDataTest {
 protected:
  DataServiceTest() {
    server_ =
        GrpcServer::Start({.address = "unix:" + (directory_ / "socket").string(), .metrics = &metrics_}, {&service_})
            .value();
    stub_ = v1::DataService::NewStub(MakeChannel(server_->address()));
  }

  absl::StatusOr<v1::DatasetInfo> DescribeDataset(uint32_t validation_count, absl::Duration timeout = kPatience) {
    grpc::ClientContext context;
    SetDeadline(context, timeout);
    v1::DescribeDatasetRequest request;
    request.set_validation_count(validation_count);
    v1::DatasetInfo info;
    const absl::Status status = FromGrpcStatus(stub_->DescribeDataset(&context, request, &info));
    if (!status.ok()) return status;
    return info;
  }

  Metrics metrics_{"data_service_test"};
  DataMetrics data_metrics_{metrics_};
  DataService service_{data_metrics_, {.streams = 6, .waiting = 8}};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::DataService::Stub> stub_;
};

TEST_F(DataServiceTest, DescribesTheDataset) {
  service_.SetDataset(dataset_);
  const absl::StatusOr<v1::DatasetInfo> info = DescribeDataset(30);
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 70);
  EXPECT_EQ(info->fingerprint(), dataset_->fingerprint());
  EXPECT_THAT(DescribeDataset(100), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("validation_count 100")));
}

TEST_F(DataServiceTest, CallsWaitForTheDataset) {
  std::thread describing([&] { EXPECT_THAT(DescribeDataset(0), IsOk()); });
  Call call(*stub_);
  call.Send(plan_);
  call.Ask(v1::SPLIT_TEST, 0, 0, 1, 0, 1);
  EXPECT_THAT(DescribeDataset(0, absl::Milliseconds(50)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  service_.SetDataset(dataset_);
  describing.join();
  const auto batch = call.Read();
  ASSERT_TRUE(batch.has_value());
  ExpectBatch(*batch, {v1::SPLIT_TEST, 0, 0, 0});
}

// Clients ask again after each time-out: what they gave up must not pile up.
TEST_F(DataServiceTest, CallsThatWereGivenUpAreForgotten) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    EXPECT_TRUE(Eventually([&] {
      return absl::IsDeadlineExceeded(DescribeDataset(0, absl::Milliseconds(5)).status());
    })) << attempt;
  }
  EXPECT_TRUE(Eventually([&] {
    (void)DescribeDataset(0, absl::Milliseconds(5));
    return service_.StreamsText().find("calls that wait for the dataset: 1\n") != std::string::npos;
  })) << service_.StreamsText();
}

TEST_F(DataServiceTest, OnlySoManyCallsWait) {
  std::vector<std::thread> waiting;
  for (int i = 0; i < 8; ++i) waiting.emplace_back([&] { EXPECT_THAT(DescribeDataset(0), IsOk()); });
  EXPECT_TRUE(Eventually([&] { return service_.StreamsText().find("dataset: 8") != std::string::npos; }));
  EXPECT_THAT(DescribeDataset(0), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("limit of 8 calls")));
  service_.SetDataset(dataset_);
  for (std::thread& thread : waiting) thread.join();
}

TEST_F(DataServiceTest, OnlySoManyStreamsAreOpen) {
  service_.SetDataset(dataset_);
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 6; ++i) {
    calls.push_back(std::make_unique<Call>(*stub_));
    calls.back()->Send(plan_);
    calls.back()->Ask(v1::SPLIT_TEST, 0, 0, 1, 0, 1);
    ASSERT_TRUE(calls.back()->Read().has_value());
  }
  {
    Call one_more(*stub_);
    EXPECT_THAT(one_more.Finish(),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("limit of 6 batch streams")));
  }
  // Those that end make room.
  calls.front()->AllAsked();
  EXPECT_THAT(calls.front()->Finish(), IsOk());
  EXPECT_TRUE(Eventually([&] { return data_metrics_.streams.Value() == 5; }));
  Call in_its_place(*stub_);
  in_its_place.Send(plan_);
  in_its_place.AllAsked();
  EXPECT_THAT(in_its_place.Finish(), IsOk());
}

TEST_F(DataServiceTest, StreamCancelledBeforeTheDatasetIsLoaded) {
  {
    Call call(*stub_);
    call.Send(plan_);
    call.Cancel();
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kCancelled));
  }
  server_->Drain(kPatience);  // waits until the stream is gone
  service_.SetDataset(dataset_);
  EXPECT_EQ(data_metrics_.streams.Value(), 0);
}

TEST_F(DataServiceTest, SendsWhatIsAskedForInOrder) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  call.Send(plan_);
  call.Ask(v1::SPLIT_TRAIN, 2, 4, 2, 1, 3);
  call.Ask(v1::SPLIT_VALIDATION, 0, 0, 2, 0, 1);
  call.Ask(v1::SPLIT_TEST, 0, 2, 1, 0, 1);
  call.AllAsked();
  const std::vector<BatchKey> keys = {{v1::SPLIT_TRAIN, 2, 4, 1},      {v1::SPLIT_TRAIN, 2, 4, 2},
                                      {v1::SPLIT_TRAIN, 2, 5, 1},      {v1::SPLIT_TRAIN, 2, 5, 2},
                                      {v1::SPLIT_VALIDATION, 0, 0, 0}, {v1::SPLIT_VALIDATION, 0, 1, 0},
                                      {v1::SPLIT_TEST, 0, 2, 0}};
  for (const BatchKey& key : keys) {
    const auto batch = call.Read();
    ASSERT_TRUE(batch.has_value()) << key.ToString();
    ExpectBatch(*batch, key);
  }
  EXPECT_FALSE(call.Read().has_value());
  EXPECT_THAT(call.Finish(), IsOk());
  EXPECT_EQ(data_metrics_.of(v1::SPLIT_TRAIN).batches.Value(), 4);
  EXPECT_EQ(data_metrics_.of(v1::SPLIT_VALIDATION).samples.Value(), 10);
  EXPECT_EQ(data_metrics_.of(v1::SPLIT_TEST).samples.Value(), 4);
}

// Whoever asks, in whatever slots, gets the same distorted images; what is evaluated stays as it is.
TEST_F(DataServiceTest, AugmentationIsPartOfThePlan) {
  service_.SetDataset(dataset_);
  const auto train_step = [&](uint32_t slots) {
    Call call(*stub_);
    plan_.set_slots(slots);
    call.Send(plan_);
    call.Ask(v1::SPLIT_TRAIN, 2, 4, 1, 0, slots);
    std::string images;
    for (uint32_t slot = 0; slot < slots; ++slot) images += call.Read().value_or(v1::Batch()).images();
    return images;
  };
  const std::string plain = train_step(4);
  plan_.mutable_augmentation()->set_shift(2);
  const std::string augmented = train_step(4);
  ASSERT_EQ(augmented.size(), 16 * kImageBytes);
  EXPECT_NE(augmented, plain);
  EXPECT_EQ(train_step(4), augmented);
  EXPECT_EQ(train_step(1), augmented);
  plan_.set_slots(4);
  Call evaluation(*stub_);
  evaluation.Send(plan_);
  evaluation.Ask(v1::SPLIT_VALIDATION, 0, 0, 1, 0, 1);
  const auto batch = evaluation.Read();
  ASSERT_TRUE(batch.has_value());
  ExpectBatch(*batch, {v1::SPLIT_VALIDATION, 0, 0, 0});
  EXPECT_THAT(service_.StreamsText(), HasSubstr("augmentation shift=2"));

  Call refused(*stub_);
  plan_.mutable_augmentation()->set_shift(-1);
  refused.Send(plan_);
  EXPECT_THAT(refused.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shift -1")));
}

TEST_F(DataServiceTest, AsMuchAsTheCreditsAllow) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  plan_.set_slots(256);  // more slots than samples: most are empty
  call.Send(plan_);
  call.Ask(v1::SPLIT_TRAIN, 0, 0, 4, 0, 256);
  call.AllAsked();
  int batches = 0;
  while (call.Read().has_value()) ++batches;
  EXPECT_EQ(batches, 1024);
  EXPECT_THAT(call.Finish(), IsOk());
}

TEST_F(DataServiceTest, RefusesMoreThanTheCreditsAllow) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  plan_.set_slots(1024);
  call.Send(plan_);
  call.Ask(v1::SPLIT_TRAIN, 0, 0, 2, 0, 1024);
  EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("limit of 1024")));
}

TEST_F(DataServiceTest, RefusesAnotherDataset) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  plan_.set_fingerprint("somebody else's");
  call.Send(plan_);
  EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("somebody else's")));
}

TEST_F(DataServiceTest, AnyDatasetWillDo) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  plan_.clear_fingerprint();
  call.Send(plan_);
  call.AllAsked();
  EXPECT_THAT(call.Finish(), IsOk());
}

TEST_F(DataServiceTest, RefusesNonsense) {
  service_.SetDataset(dataset_);
  {
    Call call(*stub_);
    call.Ask(v1::SPLIT_TEST, 0, 0, 1, 0, 1);
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("must be a plan")));
  }
  {
    Call call(*stub_);
    call.SendNothing();
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("neither")));
  }
  {
    Call call(*stub_);
    call.Send(plan_);
    call.Send(plan_);
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("one plan")));
  }
  {
    Call call(*stub_);
    call.Send(plan_);
    call.Ask(v1::SPLIT_TEST, 0, 3, 1, 0, 1);
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("has 3 steps")));
  }
  {
    Call call(*stub_);
    plan_.set_batch_size(0);
    call.Send(plan_);
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("batch_size 0")));
  }
}

TEST_F(DataServiceTest, ManyStreamsAtOnce) {
  service_.SetDataset(dataset_);
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      Call call(*stub_);
      call.Send(plan_);
      for (uint64_t epoch = 0; epoch < 20; ++epoch) call.Ask(v1::SPLIT_TRAIN, epoch, 0, 6, client, client + 1);
      call.AllAsked();
      for (uint64_t epoch = 0; epoch < 20; ++epoch) {
        for (uint64_t step = 0; step < 6; ++step) {
          const auto batch = call.Read();
          ASSERT_TRUE(batch.has_value());
          ExpectBatch(*batch, {v1::SPLIT_TRAIN, epoch, step, static_cast<uint32_t>(client)});
        }
      }
      EXPECT_THAT(call.Finish(), IsOk());
    });
  }
  for (std::thread& client : clients) client.join();
  server_->Drain(kPatience);
  EXPECT_EQ(data_metrics_.streams.Value(), 0);
}

TEST_F(DataServiceTest, StatusSaysWhatAStreamWaitsFor) {
  service_.SetDataset(dataset_);
  Call call(*stub_);
  call.Send(plan_);
  call.Ask(v1::SPLIT_TEST, 0, 0, 1, 0, 1);
  ASSERT_TRUE(call.Read().has_value());
  EXPECT_THAT(service_.StreamsText(), HasSubstr("batch streams: 1"));
  EXPECT_THAT(service_.StreamsText(),
              HasSubstr("batch_size 16, 4 slots, seed 3, augmentation none; 1 batches, 8 samples"));
}

TEST_F(DataServiceTest, DrainEndsStreamsAndWaitingCalls) {
  Call waiting(*stub_);
  waiting.Send(plan_);
  std::thread describing([&] { EXPECT_THAT(DescribeDataset(0), StatusIs(absl::StatusCode::kUnavailable)); });
  EXPECT_TRUE(Eventually([&] { return data_metrics_.streams.Value() == 1; }));
  service_.Drain();
  EXPECT_THAT(waiting.Finish(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  describing.join();

  service_.SetDataset(dataset_);
  Call late(*stub_);
  EXPECT_THAT(late.Finish(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(DataServiceTest, ClientThatGoesAwayInTheMiddle) {
  service_.SetDataset(dataset_);
  {
    Call call(*stub_);
    plan_.set_slots(1024);
    call.Send(plan_);
    call.Ask(v1::SPLIT_TRAIN, 0, 0, 1, 0, 1024);
    ASSERT_TRUE(call.Read().has_value());
    call.Cancel();
    EXPECT_THAT(call.Finish(), StatusIs(absl::StatusCode::kCancelled));
  }
  server_->Drain(kPatience);
  EXPECT_EQ(data_metrics_.streams.Value(), 0);
}

}  // namespace
}  // namespace millrace
