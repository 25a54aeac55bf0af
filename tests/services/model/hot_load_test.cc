// Must-hold 4: new versions are swapped in under load. 8 clients predict without pause over real gRPC while 20 versions
// are published: no request fails, every answer is that of a version that was published, and no client ever sees a
// version older than one it has seen.
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/model/runtime.h"
#include "common/mutex.h"
#include "gtest/gtest.h"
#include "millrace/v1/model.grpc.pb.h"
#include "services/model/model_server.h"
#include "tests/services/model/exported_model.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

constexpr int kClients = 8;
constexpr uint64_t kVersions = 20;

// Clients with a connection each, which repeat one request until Stop. The first fault is kept and ends its client.
class LoadGenerator {
 public:
  LoadGenerator(const std::string& address, const v1::PredictRequest& request) {
    for (int i = 0; i < kClients; ++i) threads_.emplace_back([this, address, request] { Run(address, request); });
  }
  ~LoadGenerator() { Stop(); }

  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // Before the version can be seen: an answer of a version that was not announced is a fault.
  void Announce(uint64_t version) { announced_ = version; }

  // Both wait, though not for ever; false as soon as there is a fault.
  bool WaitForMoreAnswers(int count) {
    const int enough = answers_ + count;
    return Eventually([&] { return !fault().empty() || answers_ >= enough; }) && fault().empty();
  }
  bool WaitUntilAllSee(uint64_t version) {
    return Eventually([&] { return !fault().empty() || ClientsAt(version) == kClients; }) && fault().empty();
  }

  std::string fault() const {
    MutexLock lock(&mutex_);
    return fault_;
  }
  int answers() const { return answers_; }
  // By version, one answer of each that any client got. Answers of a version that differ are a fault.
  std::map<uint64_t, v1::PredictResponse> seen() const {
    MutexLock lock(&mutex_);
    return seen_;
  }

 private:
  void Run(const std::string& address, const v1::PredictRequest& request) {
    const auto stub = v1::ModelService::NewStub(MakeChannel(address));
    uint64_t newest = 0;
    while (!stop_) {
      grpc::ClientContext context;
      SetDeadline(context, absl::Seconds(20));
      v1::PredictResponse response;
      const grpc::Status status = stub->Predict(&context, request, &response);
      const std::string fault = status.ok() ? Note(response, newest) : status.error_message();
      if (!fault.empty()) {
        MutexLock lock(&mutex_);
        if (fault_.empty()) fault_ = fault;
        return;
      }
      newest = response.version();
      ++answers_;
    }
  }

  // Returns the fault, if there is one. `newest`: what this client has seen before.
  std::string Note(v1::PredictResponse response, uint64_t newest) {
    const uint64_t version = response.version();
    if (version < newest) return absl::StrCat("version ", version, " after ", newest);
    if (version > announced_) return absl::StrCat("version ", version, " has not been published");
    if (response.predictions_size() != 1) return absl::StrCat(response.predictions_size(), " predictions");
    response.clear_queue_microseconds();
    response.clear_compute_microseconds();
    response.clear_batch_rows();
    MutexLock lock(&mutex_);
    if (version > newest) ++clients_at_[version];
    const auto [earlier, is_new] = seen_.emplace(version, response);
    if (is_new || earlier->second.SerializeAsString() == response.SerializeAsString()) return "";
    return absl::StrCat("two answers of version ", version, ": ", earlier->second.ShortDebugString(), " and ",
                        response.ShortDebugString());
  }

  int ClientsAt(uint64_t version) const {
    MutexLock lock(&mutex_);
    const auto found = clients_at_.find(version);
    return found == clients_at_.end() ? 0 : found->second;
  }

  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> announced_ = 1;
  std::atomic<int> answers_ = 0;
  mutable Mutex mutex_;
  std::string fault_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, int> clients_at_ ABSL_GUARDED_BY(mutex_);  // by version: how many clients have got it
  std::map<uint64_t, v1::PredictResponse> seen_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

class HotLoadTest : public ::testing::Test {
 protected:
  // Publishes all versions under load; returns what the clients saw, by version.
  std::map<uint64_t, v1::PredictResponse> Run(LoadVersion load, const std::string& pixels,
                                              const std::function<void(uint64_t)>& publish) {
    publish(1);
    auto models = ModelServer::Create({.repository = root_ / "models",
                                       .poll_interval = absl::Milliseconds(1),
                                       .limits = {.executors = 2, .requests = 2 * kClients},
                                       .drain_delay = absl::ZeroDuration()},
                                      std::move(load), metrics_, RealClock());
    EXPECT_THAT(models, IsOk());
    EXPECT_THAT((*models)->Started({}), IsOk());
    auto server = GrpcServer::Start({.address = "unix:" + (root_ / "socket").string(), .metrics = &metrics_},
                                    (*models)->GrpcServices());
    EXPECT_THAT(server, IsOk());
    EXPECT_TRUE(Eventually([&] { return (*models)->Ready().ok(); })) << (*models)->StatusPage();

    v1::PredictRequest request;
    request.set_model("mnist");
    request.set_raw(pixels);
    request.set_deterministic(true);  // answers of one version are compared bit by bit
    LoadGenerator clients((*server)->address(), request);
    for (uint64_t version = 2; version <= kVersions; ++version) {
      clients.Announce(version);
      publish(version);
      // Every other version is seen before the next comes, so that swaps really happen between requests; the rest may
      // come while one is being loaded.
      const bool go_on = version % 2 == 0 ? clients.WaitUntilAllSee(version) : clients.WaitForMoreAnswers(2 * kClients);
      EXPECT_TRUE(go_on) << "at version " << version << ": " << clients.fault() << "\n" << (*models)->StatusPage();
      if (!go_on) break;
    }
    clients.Stop();
    EXPECT_EQ(clients.fault(), "");
    EXPECT_GE(clients.seen().size(), kVersions / 2);
    EXPECT_EQ(clients.seen().rbegin()->first, kVersions);
    (*server)->Drain(absl::Seconds(5));
    (*models)->Drain(absl::ZeroDuration());
    return clients.seen();
  }

  const TemporaryDirectory root_;
  Metrics metrics_{"test"};
};

TEST_F(HotLoadTest, FakeVersionsAsFastAsTheyCanBeSwapped) {
  const auto seen = Run(FakeLoader(), std::string(kFakeShape.bytes(), 'x'),
                        [&](uint64_t version) { PublishFake(root_ / "models", "mnist", version); });
  for (const auto& [version, answer] : seen) {
    EXPECT_EQ(answer.digest(), absl::StrCat("digest-", version));
    EXPECT_EQ(answer.predictions(0).label(), version % kFakeClasses);
  }
}

// Written by the trainer's exporter, verified and run by LibTorch. Each has weights of its own, so the probabilities
// tell which one really answered.
TEST_F(HotLoadTest, ExportedVersionsAreVerifiedSwappedInAndAnswerThemselves) {
  ConfigureTorch(1);
  v1::NetworkSpec network = DefaultNetwork();
  network.set_height(10);
  network.set_width(10);
  const std::string pixels(100, '\x60');
  const auto seen = Run(ServableLoader(), pixels, [&](uint64_t version) {
    ExportVersion(root_ / "models", version, *InitialParameters(network, version), network);
  });
  for (const auto& [version, answer] : seen) {
    const auto model =
        ServableModel::Load((root_ / "models/mnist" / absl::StrCat(version)).string(), {.max_warm_batch = 1});
    ASSERT_THAT(model, IsOk());
    EXPECT_EQ(answer.digest(), (*model)->manifest().model_sha256());
    const auto expected = (*model)->Predict({reinterpret_cast<const uint8_t*>(pixels.data()), pixels.size()}, 1);
    ASSERT_THAT(expected, IsOk());
    const auto& probabilities = answer.predictions(0).probabilities();
    EXPECT_EQ(std::vector<float>(probabilities.begin(), probabilities.end()), *expected) << "version " << version;
  }
  const std::string text = metrics_.Render();
  EXPECT_EQ(text.find("result=\"refused\""), std::string::npos) << text;
}

}  // namespace
}  // namespace millrace
