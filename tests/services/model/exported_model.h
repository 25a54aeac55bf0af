// Real versions of the default network, as the trainer exports them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/model/replica.h"
#include "common/model/servable.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {

inline v1::NetworkSpec DefaultNetwork() {
  v1::NetworkSpec network;
  network.set_architecture("cnn");
  network.set_channels(1);
  network.set_height(28);
  network.set_width(28);
  network.set_classes(10);
  network.set_mean(0);
  network.set_standard_deviation(1);
  return network;
}

// Returns the version's directory. Call ConfigureTorch first.
inline std::filesystem::path ExportVersion(const std::filesystem::path& repository, uint64_t version,
                                           const std::vector<float>& weights,
                                           const v1::NetworkSpec& network = DefaultNetwork()) {
  const auto exported = ExportServable({.repository = repository.string(),
                                        .model_name = "mnist",
                                        .version = version,
                                        .epoch = 1,
                                        .network = network,
                                        .parameters = weights,
                                        .validation = {},
                                        .test = {},
                                        .seed = 1,
                                        .dataset_fingerprint = "test"});
  EXPECT_THAT(exported, IsOk());
  return exported.ok() ? exported->directory : "";
}

}  // namespace millrace
