// How often a gradient or weight is copied in memory between the worker's flat vectors and the shard's (DESIGN D8).
// Worker's and shard's half of an exchange run in this process over a real gRPC stream, and this program's own memcpy
// and memmove, which the shared libraries call too, count the bytes. What the kernel copies, and additions, are not
// copies in this sense.
#include <strings.h>

#include <atomic>
#include <cstring>

#include "common/grpc_server.h"
#include "common/metrics.h"
#include "grpcpp/support/slice.h"
#include "gtest/gtest.h"
#include "services/parameter_server/parameter_service.h"
#include "services/parameter_server/shard.h"
#include "services/worker/parameter_client.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCounts = false;  // the sanitizers have a memcpy of their own
#else
constexpr bool kCounts = true;

namespace {

// Below this are headers and small messages; the payload travels in pieces of about 16 KiB.
constexpr size_t kCountedBytesMin = 256;

std::atomic<uint64_t> copied_bytes;
// By pointer, so that the compiler does not make a call of memmove, which is below, out of it.
void (*volatile const move_bytes)(const void*, void*, size_t) = bcopy;

void* CountedMove(void* to, const void* from, size_t size) {
  if (size >= kCountedBytesMin) copied_bytes.fetch_add(size, std::memory_order_relaxed);
  move_bytes(from, to, size);
  return to;
}

}  // namespace

extern "C" void* memcpy(void* __restrict to, const void* __restrict from, size_t size) noexcept {
  return CountedMove(to, from, size);
}
extern "C" void* memmove(void* to, const void* from, size_t size) noexcept { return CountedMove(to, from, size); }
#endif

namespace millrace {
namespace {

constexpr uint64_t kParameters = 3 * kChunkElements - 64;
constexpr uint64_t kBytes = kParameters * sizeof(float);
// A few hundred small copies of log lines, paths and the like, and what a cut element costs.
constexpr double kSlack = 0.01;

class ExchangeCopiesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kCounts) GTEST_SKIP() << "nothing is counted under a sanitizer";
    Shard::Options options;
    options.metrics = &metrics_;
    v1::JobPlan& plan = options.plan;
    plan.set_run_id(1);
    plan.set_parameter_count(kParameters);
    plan.set_steps_per_epoch(10);
    plan.set_total_steps(10);
    plan.mutable_dataset()->set_train_count(40);
    plan.mutable_spec()->set_batch_size(4);
    plan.mutable_spec()->set_slots(4);
    plan.mutable_spec()->set_epochs(1);
    plan.mutable_spec()->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_SGD);
    plan.mutable_spec()->mutable_optimizer()->set_learning_rate(1e-3);
    options.info.set_end(kParameters);
    auto shard = Shard::Create(options, std::vector<float>(kParameters, 1.0f));
    ASSERT_THAT(shard, IsOk());
    shard_ = *std::move(shard);
    service_.Serve(shard_, &metrics_);
    auto server = GrpcServer::Start({.address = "unix:" + (directory_ / "shard").string()}, {&service_});
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    options.info.set_address(server_->address());
    auto client = ParameterClient::Create(
        {.run_id = 1, .worker = "w", .shards = {options.info}, .parameters = parameters_.span()}, &worker_metrics_);
    ASSERT_THAT(client, IsOk());
    client_ = *std::move(client);
  }

  void TearDown() override {
    client_.reset();
    service_.CloseExchanges();
    if (server_ != nullptr) server_->Drain(absl::Seconds(1));
  }

  // Copies of every byte of the flat vector that `work` makes, in both halves together.
  template <typename Work>
  double CopiesPerByte(Work work) {
    const uint64_t before = Copied();
    work();
    return static_cast<double>(Copied() - before) / kBytes;
  }

  static uint64_t Copied() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return 0;
#else
    return copied_bytes.load(std::memory_order_relaxed);
#endif
  }

  void Pull(uint64_t version) {
    const auto pulled = client_->AwaitVersion(version, patience_);
    ASSERT_THAT(pulled, IsOk());
    ASSERT_EQ(*pulled, ParameterLink::Weights::kReady);
  }
  void Push(SlotNode slots) {
    ASSERT_THAT(client_->Push({.step = 0, .slots = slots, .samples = 4, .gradient = gradient_}, patience_), IsOk());
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"test"};
  WorkerMetrics worker_metrics_{metrics_};
  ParameterService service_;
  std::shared_ptr<Shard> shard_;
  std::unique_ptr<GrpcServer> server_;
  AlignedBuffer<float> parameters_{kParameters};
  std::shared_ptr<AlignedBuffer<float>> gradient_ = std::make_shared<AlignedBuffer<float>>(kParameters);
  std::unique_ptr<ParameterClient> client_;
  const absl::Time deadline_ = absl::Now() + absl::Seconds(60);
  std::function<absl::Status(std::string_view)> patience_ = [this](std::string_view what) {
    return absl::Now() < deadline_ ? absl::OkStatus() : absl::DeadlineExceededError(std::string(what));
  };
};

TEST_F(ExchangeCopiesTest, CountsWhatGrpcCopies) {
  EXPECT_NEAR(CopiesPerByte([&] { const grpc::Slice copy(gradient_->data(), kBytes); }), 1.0, kSlack);
}

TEST_F(ExchangeCopiesTest, WeightsAreCopiedOnceIntoTheFlatVector) {
  EXPECT_NEAR(CopiesPerByte([&] { Pull(0); }), 1.0, kSlack);
  EXPECT_EQ(parameters_[kParameters - 1], 1.0f);
}

TEST_F(ExchangeCopiesTest, AGradientIsCopiedOnceWhereItWaitsAndNotAtAllWhereItIsAdded) {
  Pull(0);
  EXPECT_NEAR(CopiesPerByte([&] { Push({0, 1}); }), 1.0, kSlack);  // waits for its sibling
  EXPECT_NEAR(CopiesPerByte([&] { Push({1, 2}); }), 0.0, kSlack);  // is added to it
  EXPECT_NEAR(CopiesPerByte([&] { Push({2, 3}); }), 1.0, kSlack);
}

TEST_F(ExchangeCopiesTest, AWholeStepCopiesAtMostOnceOnEachSide) {
  Pull(0);
  Push({0, 2});
  // The push is added to its sibling; the shard writes the new version beginning from a copy of the old one; the worker
  // copies the new one out of the message.
  EXPECT_NEAR(CopiesPerByte([&] {
                Push({2, 4});
                Pull(1);
              }),
              2.0, kSlack);
}

}  // namespace
}  // namespace millrace
