// One client's latency over Predict against a bare forward pass of the same version in this process, call by call in
// turn so that both see the same machine. First `--export` writes a version; then, with the model service up, `--target`
// measures. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/allocator.h"
#include "common/grpc_channel.h"
#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"
#include "common/random.h"
#include "millrace/v1/model.grpc.pb.h"

namespace millrace {
namespace {

using Microseconds = std::chrono::duration<double, std::micro>;

absl::Status Export(const std::string& repository) {
  ExportOptions options;
  options.repository = repository;
  options.model_name = "mnist";
  options.version = 1;
  options.network.set_architecture("cnn");
  options.network.set_channels(1);
  options.network.set_height(28);
  options.network.set_width(28);
  options.network.set_classes(10);
  options.network.set_standard_deviation(1);
  auto parameters = InitialParameters(options.network, 1);
  if (!parameters.ok()) return parameters.status();
  options.parameters = *parameters;
  return ExportServable(options).status();
}

double Percentile(std::vector<double> values, double fraction) {
  const size_t at = std::min(values.size() - 1, static_cast<size_t>(fraction * values.size()));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[at];
}

absl::StatusOr<nlohmann::json> Measure(const std::string& repository, const std::string& target, int requests) {
  auto model = ServableModel::Load(repository + "/mnist/1");
  if (!model.ok()) return model.status();
  auto stub = v1::ModelService::NewStub(MakeChannel(target));
  v1::PredictRequest request;
  request.set_raw(std::string(784, '\x40'));
  const std::span<const uint8_t> image(reinterpret_cast<const uint8_t*>(request.raw().data()), request.raw().size());

  std::vector<double> bare, remote;
  constexpr int kWarmUp = 200;
  for (int i = 0; i < kWarmUp + requests; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (auto answer = (*model)->Predict(image, 1); !answer.ok()) return answer.status();
    const auto middle = std::chrono::steady_clock::now();
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(5));
    context.set_wait_for_ready(true);
    v1::PredictResponse response;
    if (grpc::Status status = stub->Predict(&context, request, &response); !status.ok()) {
      return absl::UnavailableError(status.error_message());
    }
    if (i < kWarmUp) continue;
    bare.push_back(Microseconds(middle - start).count());
    remote.push_back(Microseconds(std::chrono::steady_clock::now() - middle).count());
  }
  return nlohmann::json{{"bare_p50_us", Percentile(bare, 0.5)},
                        {"bare_p99_us", Percentile(bare, 0.99)},
                        {"predict_p50_us", Percentile(remote, 0.5)},
                        {"predict_p99_us", Percentile(remote, 0.99)}};
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::string repository, target;
  bool export_version = false;
  int requests = 3000;
  CLI::App app("Latency of Predict against a bare forward pass");
  app.add_option("--repository", repository)->required();
  app.add_flag("--export", export_version);
  app.add_option("--target", target);
  app.add_option("--requests", requests);
  CLI11_PARSE(app, argc, argv);

  millrace::TuneAllocator();
  millrace::ConfigureTorch(1);
  if (export_version) {
    if (absl::Status status = millrace::Export(repository); !status.ok()) {
      std::cerr << status << "\n";
      return 1;
    }
    return 0;
  }
  auto result = millrace::Measure(repository, target, requests);
  if (!result.ok()) {
    std::cerr << result.status() << "\n";
    return 1;
  }
  std::cout << *result << std::endl;
  return 0;
}
