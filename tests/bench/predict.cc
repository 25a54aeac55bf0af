// One client's latency over Predict against a bare forward pass of the same version in this process and against a call
// that computes nothing, call by call in turn so that all see the same machine. First `--export` writes a version; then,
// with the model service up, `--target` measures. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/allocator.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"
#include "common/random.h"
#include "common/status_macros.h"
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

  const auto call = [&](auto method, const auto& message, auto* response) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(5));
    context.set_wait_for_ready(true);
    return FromGrpcStatus((stub.get()->*method)(&context, message, response));
  };
  std::vector<double> bare, remote, served, empty;
  constexpr int kWarmUp = 200;
  for (int i = 0; i < kWarmUp + requests; ++i) {
    const auto start = std::chrono::steady_clock::now();
    MILLRACE_RETURN_IF_ERROR((*model)->Predict(image, 1).status());
    const auto before = std::chrono::steady_clock::now();
    v1::PredictResponse response;
    MILLRACE_RETURN_IF_ERROR(call(&v1::ModelService::Stub::Predict, request, &response));
    const auto between = std::chrono::steady_clock::now();
    v1::ListModelsResponse models;
    MILLRACE_RETURN_IF_ERROR(call(&v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), &models));
    const auto end = std::chrono::steady_clock::now();
    if (i < kWarmUp) continue;
    bare.push_back(Microseconds(before - start).count());
    remote.push_back(Microseconds(between - before).count());
    served.push_back(static_cast<double>(response.compute_microseconds()));
    empty.push_back(Microseconds(end - between).count());
  }
  return nlohmann::json{{"bare_p50_us", Percentile(bare, 0.5)},      {"bare_p99_us", Percentile(bare, 0.99)},
                        {"predict_p50_us", Percentile(remote, 0.5)}, {"predict_p99_us", Percentile(remote, 0.99)},
                        {"compute_p50_us", Percentile(served, 0.5)}, {"empty_call_p50_us", Percentile(empty, 0.5)}};
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
