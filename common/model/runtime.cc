#include "common/model/runtime.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/version.h>

namespace millrace {

void ConfigureTorch(int threads) {
  torch::jit::getProfilingMode() = false;
  at::set_num_threads(threads);
  // May be set once in a process, and not after the first parallel task: a second call keeps what is there.
  static const bool interop_set = [] {
    at::set_num_interop_threads(1);
    return true;
  }();
  (void)interop_set;
}

void ConfigureTorchThread() {
  thread_local const bool configured = [] {
    at::init_num_threads();
    return true;
  }();
  (void)configured;
}

std::string TorchVersion() { return TORCH_VERSION; }

std::string CpuCapability() {
  // The one place where every version of LibTorch tells it.
  constexpr char kLine[] = "CPU capability usage: ";
  const std::string config = at::show_config();
  const size_t begin = config.find(kLine);
  if (begin == std::string::npos) return "unknown";
  const size_t value = begin + sizeof(kLine) - 1;
  return config.substr(value, config.find('\n', value) - value);
}

}  // namespace millrace
