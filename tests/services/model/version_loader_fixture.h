#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "services/model/version_loader.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/serving_fixture.h"

namespace millrace {

// A loader of fake versions, which the test polls by hand.
class VersionLoaderTest : public ServingFixture {
 protected:
  explicit VersionLoaderTest(size_t standby_max = 0) : ServingFixture(standby_max) {
    loader_ = std::make_unique<VersionLoader>(
        VersionLoader::Options{.repository = root_ / "models", .poll_interval = absl::Milliseconds(1)},
        [this](const std::string& directory) {
          ++loads_;
          return FakeLoader()(directory);
        },
        table_, model_metrics_, clock_);
  }

  void Publish(uint64_t version, const std::string& word = "good") {
    PublishFake(root_ / "models", "mnist", version, word);
  }
  void PollAll() { ServingFixture::PollAll(*loader_); }
  absl::Status Reload(const std::string& model = "mnist") {
    absl::Status status = absl::UnknownError("not answered");
    loader_->Reload(model, [&](const absl::Status& result) { status = result; });
    PollAll();
    return status;
  }

  int loads_ = 0;
  std::unique_ptr<VersionLoader> loader_;
};

}  // namespace millrace
