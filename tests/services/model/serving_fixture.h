#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/metrics.h"
#include "gtest/gtest.h"
#include "services/model/model_metrics.h"
#include "services/model/serving_table.h"
#include "services/model/version_loader.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {

// What tests of loading and serving stand on: a directory to publish in, and what is to serve.
class ServingFixture : public ::testing::Test {
 protected:
  explicit ServingFixture(size_t standby_max = 0) : table_(standby_max) {}

  // The version that answers for a model (and, if not 0, this version of it); 0 if none does.
  uint64_t Serving(const std::string& model = "mnist", uint64_t version = 0) const {
    const auto found = table_.Find(model, version);
    return found.ok() ? (*found)->info().version : 0;
  }
  // Until there is nothing new.
  static void PollAll(VersionLoader& loader) {
    for (int polls = 0; loader.PollOnce(); ++polls) ASSERT_LT(polls, 100) << "there is always something new";
  }

  const TemporaryDirectory root_;
  FakeClock clock_;
  Metrics metrics_{"test"};
  std::shared_ptr<ModelMetrics> model_metrics_ = ModelMetrics::Create(metrics_);
  ServingTable table_;
};

}  // namespace millrace
