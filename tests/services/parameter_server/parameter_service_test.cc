#include "services/parameter_server/parameter_service.h"

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "common/hashing.h"
#include "common/metrics.h"
#include "gtest/gtest.h"
#include "services/parameter_server/norm_client.h"
#include "services/parameter_server/schedule.h"
#include "tests/services/parameter_server/small_plan.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr uint64_t kParameters = kChunkElements + 1000;
constexpr uint32_t kSlots = 5;

std::string Digest(std::span<const float> values) { return Sha256Hex(std::as_bytes(values)); }

// A shard behind a real server on a Unix socket.
class ParameterServiceTest : public testing::Test {
 protected:
  ParameterServiceTest() {
    plan_ = SmallPlan(kParameters, kSlots);
    info_.set_end(kParameters);
    shard_ = *Shard::Create({plan_, info_, 1, &metrics_}, initial_);
    service_ = std::make_unique<ParameterService>();
    service_->Serve(shard_, &metrics_);
    auto server =
        GrpcServer::Start({.address = "unix:" + (directory_ / "ps").string(), .metrics = &metrics_}, {service_.get()});
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
    stub_ = v1::ParameterServer::NewStub(MakeChannel(server_->address()));
  }
  ~ParameterServiceTest() override {
    service_->CloseExchanges();
    server_->Drain(absl::Seconds(5));
  }

  // What the weights must be after so many steps.
  std::string ExpectedDigest(uint64_t version) {
    Metrics metrics("reference");
    auto reference = *Shard::Create({plan_, info_, 1, &metrics}, initial_);
    for (uint64_t step = 0; step < version; ++step) {
      const auto sum = NodeGradient(step, {0, kSlots}, kSlots, kParameters);
      for (uint64_t offset = 0; offset < kParameters; offset += kChunkElements) {
        const ByteRope::Piece piece = std::as_bytes(std::span(sum).subspan(offset, ChunkSize(kParameters, offset)));
        EXPECT_THAT(reference->AddGradient(
                        {{step, 0, kSlots, StepSamples(plan_, step), offset}, ByteRope({&piece, 1}, 0, piece.size())}),
                    IsOk());
      }
      EXPECT_THAT(reference->Apply(), IsOk());
    }
    return Digest(reference->weights().values);
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"parameter_service_test"};
  v1::JobPlan plan_;
  v1::ShardInfo info_;
  const std::vector<float> initial_ = SlotGradient(99, 99, kParameters);
  std::shared_ptr<Shard> shard_;
  std::unique_ptr<ParameterService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::ParameterServer::Stub> stub_;
};

// One exchange, spoken with stock protobuf: what any other client would do.
class Client {
 public:
  Client(v1::ParameterServer::Stub* stub, const v1::JobPlan& plan) : plan_(plan) {
    SetDeadline(context_, absl::Seconds(30));
    stream_ = stub->Exchange(&context_);
  }
  ~Client() {
    if (!finished_) context_.TryCancel();
    if (!finished_) stream_->Finish();
  }

  void Open(uint64_t run_id) {
    v1::ExchangeRequest request;
    request.mutable_open()->set_run_id(run_id);
    request.mutable_open()->set_worker("test");
    stream_->Write(request);
  }

  bool PushChunk(uint64_t step, SlotNode node, uint64_t offset) {
    const auto sum = NodeGradient(step, node, kSlots, kParameters);
    const auto values = std::as_bytes(std::span(sum).subspan(offset, ChunkSize(kParameters, offset)));
    v1::ExchangeRequest request;
    v1::GradientChunk& chunk = *request.mutable_gradient();
    chunk.set_step(step);
    chunk.set_slot_begin(node.begin);
    chunk.set_slot_end(node.end);
    chunk.set_samples(StepSamples(plan_, step));
    chunk.set_offset(offset);
    chunk.set_values(values.data(), values.size());
    return stream_->Write(request);
  }
  void Push(uint64_t step, SlotNode node) {
    for (uint64_t offset = 0; offset < kParameters; offset += kChunkElements) PushChunk(step, node, offset);
  }

  bool ReadOne() {
    v1::ExchangeResponse response;
    if (!stream_->Read(&response)) return false;
    if (response.has_ack()) acks.push_back(response.ack());
    if (response.has_weights()) {
      const v1::WeightsChunk& chunk = response.weights();
      if (chunk.offset() == 0) {
        EXPECT_TRUE(weights.empty() || chunk.version() > version);
        incoming_.clear();
        incoming_version_ = chunk.version();
      }
      EXPECT_EQ(chunk.version(), incoming_version_);
      EXPECT_EQ(chunk.offset() * sizeof(float), incoming_.size());
      incoming_ += chunk.values();
      if (incoming_.size() == kParameters * sizeof(float)) {
        version = incoming_version_;
        weights = incoming_;
      }
    }
    return true;
  }
  bool ReadWeights(uint64_t wanted) {
    while (weights.empty() || version < wanted) {
      if (!ReadOne()) return false;
    }
    return true;
  }
  bool ReadAcks(size_t count) {
    while (acks.size() < count) {
      if (!ReadOne()) return false;
    }
    return true;
  }

  absl::Status Finish() {
    stream_->WritesDone();
    while (ReadOne()) {
    }
    finished_ = true;
    return FromGrpcStatus(stream_->Finish());
  }

  uint64_t incoming_version() const { return incoming_version_; }

  std::vector<v1::PushAck> acks;
  uint64_t version = 0;  // the newest that has come whole
  std::string weights;   // its bytes; empty before the first

 private:
  const v1::JobPlan& plan_;
  uint64_t incoming_version_ = 0;
  std::string incoming_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>> stream_;
  bool finished_ = false;
};

TEST_F(ParameterServiceTest, PushesAreAcknowledgedAndWeightsComeToEveryExchange) {
  Client a(stub_.get(), plan_), b(stub_.get(), plan_);
  a.Open(plan_.run_id());
  b.Open(plan_.run_id());
  ASSERT_TRUE(a.ReadWeights(0));
  EXPECT_EQ(Sha256Hex(a.weights), Digest(initial_));
  for (uint64_t step = 0; step < 6; ++step) {
    a.Push(step, {0, 4});
    ASSERT_TRUE(a.ReadAcks(step + 1));
    EXPECT_EQ(a.acks.back().step(), step);
    EXPECT_EQ(a.acks.back().slot_begin(), 0u);
    EXPECT_EQ(a.acks.back().slot_end(), 4u);
    b.Push(step, {4, 5});
    ASSERT_TRUE(a.ReadWeights(step + 1));
    ASSERT_TRUE(b.ReadWeights(step + 1));
    EXPECT_EQ(a.weights, b.weights);
  }
  EXPECT_EQ(Sha256Hex(a.weights), ExpectedDigest(6));
  EXPECT_THAT(a.Finish(), IsOk());
  EXPECT_THAT(b.Finish(), IsOk());
}

// Two shards of a job that clips gradients, each behind a server of its own.
class NormsOverTheWireTest : public testing::Test {
 protected:
  NormsOverTheWireTest() {
    plan_ = SmallPlan(kParameters, kSlots);
    plan_.mutable_spec()->set_clip_norm(10);
    const std::string address = "unix:" + (directory_ / "0").string();
    Serve(0, rendezvous_);
    Serve(1,
          std::make_shared<NormClient>(NormClient::Options{.run_id = plan_.run_id(), .shard = 1, .address = address}));
    stub_ = v1::ParameterServer::NewStub(MakeChannel(address));
  }
  ~NormsOverTheWireTest() override {
    for (auto& service : services_) service->CloseExchanges();
    for (auto& server : servers_) server->Drain(absl::Seconds(5));
  }

  void Serve(uint32_t index, std::shared_ptr<NormExchange> norms) {
    const ElementRange range = (*ShardRanges(kParameters, 2))[index];
    v1::ShardInfo info;
    info.set_shard(index);
    info.set_begin(range.begin);
    info.set_end(range.end);
    shards_.push_back(
        *Shard::Create({.plan = plan_, .info = info, .num_shards = 2, .metrics = &metrics_, .norms = std::move(norms)},
                       std::span(initial_).subspan(range.begin, range.size())));
    services_.push_back(std::make_unique<ParameterService>());
    services_.back()->Serve(shards_.back(), &metrics_);
    auto server =
        GrpcServer::Start({.address = "unix:" + (directory_ / std::to_string(index)).string(), .metrics = &metrics_},
                          {services_.back().get()});
    EXPECT_THAT(server, IsOk());
    servers_.push_back(*std::move(server));
  }

  void Push(Shard& shard, uint64_t step) {
    const auto sum = NodeGradient(step, {0, kSlots}, kSlots, kParameters);
    const ElementRange range = shard.range();
    for (uint64_t offset = 0; offset < range.size(); offset += kChunkElements) {
      const auto values = std::span(sum).subspan(range.begin + offset, ChunkSize(range.size(), offset));
      const ByteRope::Piece piece = std::as_bytes(values);
      ASSERT_THAT(shard.AddGradient(
                      {{step, 0, kSlots, StepSamples(plan_, step), offset}, ByteRope({&piece, 1}, 0, piece.size())}),
                  IsOk());
    }
    ASSERT_THAT(shard.Apply(), IsOk());
  }

  absl::Status Ask(uint64_t run_id, uint32_t shard, uint64_t step) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::NormTotal total;
    return FromGrpcStatus(stub_->SumNorm(&context, EncodeNormPart(run_id, shard, step, {}), &total));
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"norms_over_the_wire_test"};
  v1::JobPlan plan_;
  const std::vector<float> initial_ = SlotGradient(99, 99, kParameters);
  const std::shared_ptr<NormRendezvous> rendezvous_ = std::make_shared<NormRendezvous>(2);
  std::vector<std::shared_ptr<Shard>> shards_;
  std::vector<std::unique_ptr<ParameterService>> services_;
  std::vector<std::unique_ptr<GrpcServer>> servers_;
  std::unique_ptr<v1::ParameterServer::Stub> stub_;
};

TEST_F(NormsOverTheWireTest, BothShardsApplyStepsWithTheSameScale) {
  v1::ShardInfo whole;
  whole.set_end(kParameters);
  std::shared_ptr<Shard> reference = *Shard::Create({plan_, whole, 1, &metrics_}, initial_);
  for (uint64_t step = 0; step < 6; ++step) {
    Push(*reference, step);
    for (auto& shard : shards_) Push(*shard, step);
    for (auto& shard : shards_) {
      ASSERT_TRUE(Eventually([&] { return shard->version() == step + 1; })) << shard->WaitingFor();
    }
  }
  std::vector<float> weights;
  for (auto& shard : shards_) {
    const auto part = shard->weights().values;
    weights.insert(weights.end(), part.begin(), part.end());
  }
  EXPECT_EQ(Digest(weights), Digest(reference->weights().values));
}

TEST_F(NormsOverTheWireTest, AnotherRunsNormIsRefused) {
  EXPECT_THAT(Ask(plan_.run_id() + 1, 1, 0), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not this one")));
  EXPECT_THAT(Ask(plan_.run_id(), 2, 0), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no place")));
  EXPECT_EQ(shards_[0]->version(), 0u);
}

TEST_F(NormsOverTheWireTest, AnEndingShardAnswersWhoeverWaits) {
  absl::Status told;
  std::thread waiting([&] { told = Ask(plan_.run_id(), 1, 0); });
  EXPECT_TRUE(Eventually([&] { return rendezvous_->WaitingFor() == "the norm of shard 0"; }));
  services_[0]->CloseExchanges();
  waiting.join();
  EXPECT_THAT(told, StatusIs(StatusCode::kCancelled));
}

TEST_F(ParameterServiceTest, NormsAreForJobsThatClip) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::NormTotal total;
  EXPECT_THAT(FromGrpcStatus(stub_->SumNorm(&context, EncodeNormPart(plan_.run_id(), 0, 0, {}), &total)),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no norms")));
}

TEST_F(ParameterServiceTest, DuplicatesAreAcknowledged) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id());
  client.Push(0, {0, 2});
  client.Push(0, {0, 2});
  client.Push(0, {1, 2});
  ASSERT_TRUE(client.ReadAcks(3));
  client.Push(0, {0, 5});
  ASSERT_TRUE(client.ReadWeights(1));
  client.Push(0, {2, 4});  // applied already
  ASSERT_TRUE(client.ReadAcks(5));
  EXPECT_EQ(shard_->version(), 1u);
}

TEST_F(ParameterServiceTest, BeforeThereIsAShardEveryCallIsUnavailable) {
  ParameterService early;
  EXPECT_FALSE(early.serving());
  auto server = GrpcServer::Start({.address = "unix:" + (directory_ / "early").string()}, {&early});
  ASSERT_THAT(server, IsOk());
  const auto stub = v1::ParameterServer::NewStub(MakeChannel((*server)->address()));
  const auto unavailable = StatusIs(StatusCode::kUnavailable, HasSubstr("waits for the job's plan"));
  {
    Client client(stub.get(), plan_);
    client.Open(plan_.run_id());
    EXPECT_THAT(client.Finish(), unavailable);
  }
  {
    grpc::ClientContext context;
    auto reader = stub->FetchWeights(&context, {});
    v1::WeightsChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_THAT(FromGrpcStatus(reader->Finish()), unavailable);
  }
  {
    grpc::ClientContext context;
    v1::ShardStatus status;
    EXPECT_THAT(FromGrpcStatus(stub->GetShardStatus(&context, {}, &status)), unavailable);
  }
  (*server)->Drain(absl::Seconds(5));
}

TEST_F(ParameterServiceTest, RefusesAnotherRun) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id() + 1);
  EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("run")));
}

TEST_F(ParameterServiceTest, RefusesWhatBreaksTheProtocol) {
  {
    Client client(stub_.get(), plan_);
    client.Push(0, {0, 1});
    EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("open")));
  }
  {
    Client client(stub_.get(), plan_);
    client.Open(plan_.run_id());
    client.Open(plan_.run_id());
    EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("open")));
  }
  {
    Client client(stub_.get(), plan_);
    client.Open(plan_.run_id());
    client.PushChunk(0, {1, 3}, 0);
    EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kInvalidArgument));
  }
  {
    Client client(stub_.get(), plan_);
    client.Open(plan_.run_id());
    client.PushChunk(0, {0, 1}, kChunkElements);
    EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("order")));
  }
  {
    Client client(stub_.get(), plan_);
    client.Open(plan_.run_id());
    client.Push(1, {0, 1});
    EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kFailedPrecondition));
  }
  EXPECT_EQ(shard_->version(), 0u);
}

// Workers that come, push overlapping parts again and again, break off in the middle and come again.
TEST_F(ParameterServiceTest, RestlessWorkersGiveTheSameBits) {
  std::atomic<bool> failed{false};
  auto work = [&](uint64_t seed) {
    const std::vector<SlotNode> nodes = {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}, {0, 2}, {2, 4}, {0, 4}};
    auto stub = v1::ParameterServer::NewStub(MakeChannel(server_->address()));
    uint64_t random = seed;
    auto next = [&](uint64_t n) {
      random = random * 6364136223846793005ull + 1442695040888963407ull;
      return (random >> 33) % n;
    };
    while (shard_->version() < plan_.total_steps() && !failed) {
      Client client(stub.get(), plan_);
      client.Open(plan_.run_id());
      while (next(4) != 0) {
        if (!client.ReadWeights(shard_->version()) || client.version >= plan_.total_steps()) break;
        const SlotNode node = nodes[next(nodes.size())];
        if (next(5) == 0) {
          client.PushChunk(client.version, node, 0);
          break;  // in the middle of a push
        }
        const size_t acks = client.acks.size();
        client.Push(client.version, node);
        if (!client.ReadAcks(acks + 1)) failed = true;
      }
    }
  };
  std::vector<std::thread> workers;
  for (uint64_t seed = 1; seed <= 4; ++seed) workers.emplace_back(work, seed);
  for (std::thread& worker : workers) worker.join();
  EXPECT_FALSE(failed);
  EXPECT_EQ(Digest(shard_->weights().values), ExpectedDigest(plan_.total_steps()));
}

TEST_F(ParameterServiceTest, ASlowReaderSkipsVersionsAndGetsTheNewest) {
  Client slow(stub_.get(), plan_), fast(stub_.get(), plan_);
  slow.Open(plan_.run_id());
  fast.Open(plan_.run_id());
  for (uint64_t step = 0; step < 6; ++step) {
    fast.Push(step, {0, 5});
    ASSERT_TRUE(fast.ReadWeights(step + 1));
  }
  ASSERT_TRUE(slow.ReadWeights(6));  // ReadOne checks that versions ascend and are not mixed
  EXPECT_EQ(slow.weights, fast.weights);
}

TEST_F(ParameterServiceTest, AVersionIsSentToItsEndThoughTheNextHasBegun) {
  // Takes no more than 64 KiB that nobody has read: the shard's first piece of version 1 is long under way.
  grpc::ChannelArguments narrow;
  narrow.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto slow_stub = v1::ParameterServer::NewStub(
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), narrow));
  Client slow(slow_stub.get(), plan_), fast(stub_.get(), plan_);
  slow.Open(plan_.run_id());
  fast.Open(plan_.run_id());
  ASSERT_TRUE(slow.ReadWeights(0));
  fast.Push(0, {0, 5});
  ASSERT_TRUE(fast.ReadWeights(1));
  fast.PushChunk(1, {0, 5}, 0);
  while (fast.incoming_version() < 2) ASSERT_TRUE(fast.ReadOne());
  ASSERT_TRUE(slow.ReadWeights(1));  // the rest of version 2 is never pushed
  EXPECT_EQ(slow.version, 1u);
}

TEST_F(ParameterServiceTest, FetchWeightsStreamsSnapshotsAndTheNewest) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id());
  std::map<uint64_t, std::string> digests;
  for (uint64_t step = 0; step < 4; ++step) {
    client.Push(step, {0, 5});
    ASSERT_TRUE(client.ReadWeights(step + 1));
    digests[step + 1] = Sha256Hex(client.weights);
  }
  auto fetch = [&](uint64_t run_id, uint64_t version) -> absl::StatusOr<std::string> {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(30));
    v1::FetchWeightsRequest request;
    request.set_run_id(run_id);
    request.set_version(version);
    auto reader = stub_->FetchWeights(&context, request);
    std::string bytes;
    for (v1::WeightsChunk chunk; reader->Read(&chunk);) {
      EXPECT_EQ(chunk.version(), version);
      EXPECT_EQ(chunk.offset() * sizeof(float), bytes.size());
      bytes += chunk.values();
    }
    auto status = FromGrpcStatus(reader->Finish());
    if (!status.ok()) return status;
    return Sha256Hex(bytes);
  };
  EXPECT_EQ(*fetch(plan_.run_id(), 3), digests[3]);
  EXPECT_EQ(*fetch(plan_.run_id(), 4), digests[4]);
  EXPECT_THAT(fetch(plan_.run_id(), 1), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(fetch(1, 4), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(ParameterServiceTest, CheckpointsAndStatus) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id());
  for (uint64_t step = 0; step < 2; ++step) client.Push(step, {0, 5});
  ASSERT_TRUE(client.ReadWeights(2));

  v1::SaveCheckpointRequest save;
  save.set_run_id(plan_.run_id());
  save.set_version(2);
  save.set_directory(directory_ / "checkpoint");
  v1::SaveCheckpointResponse saved;
  // Workers have the weights before the snapshot is taken: whoever asks too early asks again.
  ASSERT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    return stub_->SaveCheckpoint(&context, save, &saved).ok();
  }));
  EXPECT_EQ(saved.file(), "shard-00000-of-00001.safetensors");
  EXPECT_EQ(saved.bytes(), std::filesystem::file_size(directory_ / "checkpoint" / saved.file()));
  EXPECT_EQ(saved.sha256(), *Sha256File(directory_ / "checkpoint" / saved.file()));

  v1::ReleaseSnapshotRequest release;
  release.set_run_id(plan_.run_id());
  release.set_version(2);
  {
    grpc::ClientContext context;
    v1::ReleaseSnapshotResponse released;
    ASSERT_TRUE(stub_->ReleaseSnapshot(&context, release, &released).ok());
  }
  {
    grpc::ClientContext context;
    EXPECT_EQ(stub_->SaveCheckpoint(&context, save, &saved).error_code(), grpc::StatusCode::NOT_FOUND);
  }
  {
    grpc::ClientContext context;
    save.set_run_id(1);
    EXPECT_EQ(stub_->SaveCheckpoint(&context, save, &saved).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }

  client.Push(2, {0, 2});
  ASSERT_TRUE(client.ReadAcks(3));
  v1::ShardStatus status;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetShardStatus(&context, {}, &status).ok());
  EXPECT_EQ(status.version(), 2u);
  EXPECT_EQ(status.waiting_for(), "step 2: slots 2-4");
  EXPECT_EQ(status.gradient_bytes(), 3 * kParameters * sizeof(float));
  EXPECT_GE(status.weight_bytes(), kParameters * sizeof(float));
  EXPECT_EQ(status.shard().end(), kParameters);
}

TEST_F(ParameterServiceTest, ANewRunEndsTheExchangesOfTheOldOne) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id());
  client.Push(0, {0, 5});
  ASSERT_TRUE(client.ReadWeights(1));
  client.PushChunk(1, {0, 5}, 0);
  service_->EndRun();
  EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("run is over")));
  Client between(stub_.get(), plan_);
  between.Open(plan_.run_id());
  EXPECT_THAT(between.Finish(), StatusIs(StatusCode::kUnavailable));

  const v1::JobPlan old = plan_;
  plan_.set_run_id(old.run_id() + 1);
  const std::shared_ptr<Shard> old_shard = shard_;
  shard_ = *Shard::Create({plan_, info_, 1, &metrics_}, initial_);
  service_->Serve(shard_, &metrics_);
  Client late(stub_.get(), old);
  late.Open(old.run_id());
  EXPECT_THAT(late.Finish(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("run")));
  Client next(stub_.get(), plan_);
  next.Open(plan_.run_id());
  ASSERT_TRUE(next.ReadWeights(0));
  EXPECT_EQ(Sha256Hex(next.weights), Digest(initial_));
  // What the old run still applies is not for the new one's workers: chunk by chunk, a mixture would come of it.
  const auto sum = NodeGradient(1, {0, kSlots}, kSlots, kParameters);
  for (uint64_t offset = 0; offset < kParameters; offset += kChunkElements) {
    const ByteRope::Piece piece = std::as_bytes(std::span(sum).subspan(offset, ChunkSize(kParameters, offset)));
    old_shard->AddGradient({{1, 0, kSlots, StepSamples(plan_, 1), offset}, ByteRope({&piece, 1}, 0, piece.size())})
        .IgnoreError();
  }
  ASSERT_THAT(old_shard->Apply(), IsOk());
  ASSERT_EQ(old_shard->version(), 2u);
  next.Push(0, {0, 5});
  ASSERT_TRUE(next.ReadWeights(1));
  EXPECT_EQ(next.version, 1u);
  EXPECT_EQ(Sha256Hex(next.weights), ExpectedDigest(1));
}

TEST_F(ParameterServiceTest, ClosingEndsOpenExchangesAndRefusesNewOnes) {
  Client client(stub_.get(), plan_);
  client.Open(plan_.run_id());
  ASSERT_TRUE(client.ReadWeights(0));
  service_->CloseExchanges();
  EXPECT_THAT(client.Finish(), StatusIs(StatusCode::kUnavailable));
  Client late(stub_.get(), plan_);
  late.Open(plan_.run_id());
  EXPECT_THAT(late.Finish(), StatusIs(StatusCode::kUnavailable));
}

}  // namespace
}  // namespace millrace
