// Writes version 1 of model "mnist" into a repository: an untrained network.
#include <CLI/CLI.hpp>
#include <iostream>

#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"

namespace millrace {
namespace {

absl::Status Export(const std::string& repository, const std::string& network) {
  ExportOptions options;
  options.repository = repository;
  options.model_name = "mnist";
  options.version = 1;
  options.network.set_architecture(network);
  options.network.set_channels(1);
  options.network.set_height(28);
  options.network.set_width(28);
  options.network.set_classes(10);
  options.network.set_standard_deviation(1);
  auto parameters = InitialParameters(options.network, /*seed=*/1);
  if (!parameters.ok()) return parameters.status();
  options.parameters = *parameters;
  return ExportServable(options).status();
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::string repository, network = "cnn";
  CLI::App app("Writes a version of an untrained network");
  app.add_option("repository", repository)->required();
  app.add_option("--network", network)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  millrace::ConfigureTorch(1);
  if (absl::Status status = millrace::Export(repository, network); !status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  return 0;
}
