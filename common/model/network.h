// Builds the TorchScript module of a NetworkSpec. Internal to common/model: includes LibTorch.
//
// The module has one input, pixels 0-255 as uint8 or float32 [n, channels, height, width], and two methods: `logits`
// (training) and `forward`, their softmax (serving). Both share the preprocessing and the network's source, so training
// and serving cannot drift apart.
#pragma once

#include <torch/script.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

struct Network {
  torch::jit::Module module;
  ParameterTable table;
  // The trainable parameters in table order. For a built-in network they are zero, for torchscript as stored.
  std::vector<at::Tensor> parameters;
  // How each parameter of a built-in network starts: uniform in [-limit, limit), or zero for limit 0. Empty for
  // torchscript, whose stored parameters are the initial ones.
  std::vector<double> initial_limits;
  // What training must not change: every worker would have its own. Empty for built-in networks.
  std::vector<at::Tensor> buffers;
};

// Errors as NetworkParameters (replica.h). LibTorch's exceptions are caught.
absl::StatusOr<Network> BuildNetwork(const v1::NetworkSpec& spec);

// The parameters that require a gradient, each once, in the order of the module's attributes: the order of the flat vector.
std::vector<std::pair<std::string, at::Tensor>> TrainableParameters(const torch::jit::Module& module);

// Makes every parameter of the module a view into `flat`, which must hold table.size() elements and outlive the module.
// The values of `flat` are what counts from here on.
void BindParameters(Network& network, float* flat);

// Writes the job's initial parameters to `flat`, which holds table.size() elements. Not after BindParameters for a
// torchscript network, unless `flat` is the buffer it was bound to and still holds the stored values.
void WriteInitialParameters(const Network& network, uint64_t seed, float* flat);

}  // namespace millrace
