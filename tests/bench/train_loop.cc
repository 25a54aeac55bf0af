// Baseline: images per second of a plain single-process LibTorch training loop over the default network, with the data
// already in memory, no data service, no parameter server. Prints one JSON object.
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/allocator.h"
#include "common/model/network.h"
#include "common/model/runtime.h"

namespace {

millrace::v1::NetworkSpec DefaultNetwork() {
  millrace::v1::NetworkSpec network;
  network.set_architecture("cnn");
  network.set_channels(1);
  network.set_height(28);
  network.set_width(28);
  network.set_classes(10);
  network.set_standard_deviation(1);
  return network;
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1;
  int64_t batch = 128;
  int steps = 200;
  CLI::App app("Images per second of a plain LibTorch training loop");
  app.add_option("--threads", threads);
  app.add_option("--batch", batch);
  app.add_option("--steps", steps);
  CLI11_PARSE(app, argc, argv);

  millrace::TuneAllocator();
  millrace::ConfigureTorch(threads);
  auto network = millrace::BuildNetwork(DefaultNetwork());
  if (!network.ok()) {
    std::cerr << network.status() << "\n";
    return 1;
  }
  {
    std::vector<float> initial(network->table.size());
    millrace::WriteInitialParameters(*network, 1, initial.data());
    torch::NoGradGuard no_grad;
    const float* from = initial.data();
    for (at::Tensor& parameter : network->parameters) {
      parameter.copy_(torch::from_blob(const_cast<float*>(from), parameter.sizes()));
      from += parameter.numel();
    }
  }
  torch::optim::Adam optimizer(network->parameters, torch::optim::AdamOptions(1e-3));

  constexpr int64_t kImages = 8192;
  const torch::Tensor images = torch::randint(0, 256, {kImages, 1, 28, 28}).to(torch::kUInt8);
  const torch::Tensor labels = torch::randint(0, 10, {kImages}, torch::kLong);
  auto output_of = network->module.get_method("output");

  constexpr int kWarmUpSteps = 20;
  std::chrono::steady_clock::time_point start;
  for (int step = 0; step < kWarmUpSteps + steps; ++step) {
    if (step == kWarmUpSteps) start = std::chrono::steady_clock::now();
    const int64_t at = step * batch % (kImages - batch);
    // As zero_grad(set_to_none=True) in Python, which the C++ optimizer lacks: the next gradient is stolen, not added.
    for (at::Tensor& parameter : network->parameters) parameter.mutable_grad().reset();
    torch::Tensor output = output_of({images.narrow(0, at, batch)}).toTensor();
    torch::nn::functional::cross_entropy(output, labels.narrow(0, at, batch)).backward();
    optimizer.step();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::cout << nlohmann::json{{"threads", threads}, {"batch", batch}, {"images_per_second", steps * batch / seconds}}
            << std::endl;
  return 0;
}
