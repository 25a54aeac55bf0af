// One client's latency over Predict against a bare forward pass of the same version in this process and against a call
// that computes nothing, call by call in turn so that all see the same machine. With a model service of the
// repository's version 1 up, `--target` measures; `--bare ROWS` is how fast forward passes of so many rows are when
// nothing else is done. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "common/allocator.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "millrace/v1/model.grpc.pb.h"

namespace millrace {
namespace {

using Microseconds = std::chrono::duration<double, std::micro>;

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
  // Each call comes after a forward pass of ours, which has emptied the caches for both kinds alike.
  for (int i = 0; i < kWarmUp + requests; ++i) {
    const auto start = std::chrono::steady_clock::now();
    MILLRACE_RETURN_IF_ERROR((*model)->Predict(image, 1).status());
    const auto between = std::chrono::steady_clock::now();
    v1::PredictResponse response;
    const bool compute = i % 2 == 0;
    if (compute) {
      MILLRACE_RETURN_IF_ERROR(call(&v1::ModelService::Stub::Predict, request, &response));
    } else {
      v1::ListModelsResponse models;
      MILLRACE_RETURN_IF_ERROR(call(&v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), &models));
    }
    const auto end = std::chrono::steady_clock::now();
    if (i < kWarmUp) continue;
    bare.push_back(Microseconds(between - start).count());
    (compute ? remote : empty).push_back(Microseconds(end - between).count());
    if (compute) served.push_back(static_cast<double>(response.compute_microseconds()));
  }
  return nlohmann::json{{"bare_p50_us", Percentile(bare, 0.5)},      {"bare_p99_us", Percentile(bare, 0.99)},
                        {"predict_p50_us", Percentile(remote, 0.5)}, {"predict_p99_us", Percentile(remote, 0.99)},
                        {"compute_p50_us", Percentile(served, 0.5)}, {"empty_call_p50_us", Percentile(empty, 0.5)}};
}

// Forward passes on `threads` threads at once, one intra-op thread each.
absl::StatusOr<nlohmann::json> MeasureBare(const std::string& repository, size_t rows, int threads) {
  auto model = ServableModel::Load(repository + "/mnist/1", {.max_warm_batch = rows});
  if (!model.ok()) return model.status();
  const std::vector<uint8_t> images(rows * 784, 0x40);
  const auto start = std::chrono::steady_clock::now();
  const auto end = start + std::chrono::seconds(2);
  const std::clock_t cpu_start = std::clock();
  std::atomic<uint64_t> passes = 0;
  {
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) {
      workers.emplace_back([&] {
        while (std::chrono::steady_clock::now() < end && (*model)->Predict(images, rows).ok()) ++passes;
      });
    }
  }
  const double seconds = Microseconds(std::chrono::steady_clock::now() - start).count() / 1e6;
  const double cpu_seconds = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const auto done = static_cast<double>(passes * rows);
  return nlohmann::json{{"rows_per_second", done / seconds}, {"cpu_seconds_per_row", cpu_seconds / done}};
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::string repository, target;
  int requests = 6000;
  size_t bare_rows = 0;
  int threads = 1;
  CLI::App app("Latency of Predict against a bare forward pass");
  app.add_option("--repository", repository)->required();
  app.add_option("--target", target);
  app.add_option("--requests", requests);
  app.add_option("--bare", bare_rows, "rows of a forward pass");
  app.add_option("--threads", threads, "of --bare");
  CLI11_PARSE(app, argc, argv);

  millrace::TuneAllocator();
  millrace::ConfigureTorch(1);
  auto result = bare_rows > 0 ? millrace::MeasureBare(repository, bare_rows, threads)
                              : millrace::Measure(repository, target, requests);
  if (!result.ok()) {
    std::cerr << result.status() << "\n";
    return 1;
  }
  std::cout << *result << std::endl;
  return 0;
}
