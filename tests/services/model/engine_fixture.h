#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/metrics.h"
#include "gtest/gtest.h"
#include "services/model/inference_engine.h"
#include "services/model/model_metrics.h"
#include "services/model/repository_control.h"
#include "services/model/rollout.h"
#include "services/model/serving_table.h"
#include "services/model/version_loader.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {

// What tests of the protocols stand on: fake versions, published by hand, and the engine that answers for them.
class EngineFixture : public ::testing::Test {
 protected:
  void Publish(uint64_t version, const std::string& word = "good") {
    PublishFake(root_ / "models", "mnist", version, word);
  }
  void PublishAndLoad(uint64_t version, const std::string& word = "good") {
    Publish(version, word);
    loader_.PollOnce();
  }

  // Beside the version that serves; requests that name no version go to it.
  void TryCandidate(uint64_t version, double fraction = 1) {
    table_.StartRollout(std::make_shared<Rollout>(
        std::make_shared<const LoadedVersion>(std::make_unique<FakePredictor>(FakeInfo("mnist", version)),
                                              model_metrics_->AddVersion("mnist", version), 0),
        RolloutOptions{.mode = RolloutOptions::Mode::kCanary,
                       .canary_fraction = fraction,
                       .limits = {.rows = 1000, .agreement_min = 0}},
        shadow_, model_metrics_, [] {}));
  }
  ~EngineFixture() override { shadow_->Stop(); }

  const TemporaryDirectory root_;
  std::atomic<bool> blocked_ = false;
  std::atomic<int> forward_passes_ = 0;
  Metrics metrics_{"test"};
  std::shared_ptr<ModelMetrics> model_metrics_ = ModelMetrics::Create(metrics_);
  std::shared_ptr<ShadowRunner> shadow_ = std::make_shared<ShadowRunner>();
  ServingTable table_;
  InferenceEngine engine_{{.executors = 2, .batch_rows = 4, .requests = 16}, RealClock()};
  VersionLoader loader_{{.repository = root_ / "models", .poll_interval = absl::Milliseconds(1)},
                        FakeLoader([this] {
                          ++forward_passes_;
                          while (blocked_) std::this_thread::yield();
                        }),
                        table_,
                        model_metrics_,
                        RealClock()};
  RepositoryControl control_{loader_};
};

}  // namespace millrace
