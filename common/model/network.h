// Builds the TorchScript module of a NetworkSpec. Internal to common/model: includes LibTorch.
//
// The module has one input, pixels 0-255 as uint8 or float32 [n, channels, height, width], and two methods: `output`
// (training), which gives logits [n, classes] or a reconstruction [n, channels, height, width] of pixels in [0, 1], and
// `forward` (serving), which gives their softmax, or the reconstruction and its error [n, 1]. Both share the
// preprocessing and the network's source, so training and serving cannot drift apart.
#pragma once

#include <torch/script.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/built_in.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

struct Network {
  torch::jit::Module module;
  ParameterTable table;
  // In table order. For a built-in network they are zero, for torchscript as stored.
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> statistics;
  // How each tensor of the table starts. Empty for torchscript, whose stored values are the initial ones.
  std::vector<InitialValues> initial;
  bool noise = true;  // training may draw random numbers
  // A slot that is not empty must have so many: batch normalisation cannot do with one value.
  uint32_t slot_samples_min = 1;

  // By place in the table.
  at::Tensor& tensor(size_t i) { return i < parameters.size() ? parameters[i] : statistics[i - parameters.size()]; }
  const at::Tensor& tensor(size_t i) const { return const_cast<Network*>(this)->tensor(i); }
};

// Errors as DescribeNetwork (replica.h). LibTorch's exceptions are caught.
absl::StatusOr<Network> BuildNetwork(const v1::NetworkSpec& spec);

// The parameters that require a gradient, each once, in the order of the module's attributes: the order of the flat
// vector.
std::vector<std::pair<std::string, at::Tensor>> TrainableParameters(const torch::jit::Module& module);

// The tensors of the module that are not trained, each once, in the order of its attributes.
std::vector<std::pair<std::string, at::Tensor>> Buffers(const torch::jit::Module& module);

// What `forward` returned as one contiguous tensor [rows, values per row]: the probabilities, or every row's
// reconstruction followed by its error.
at::Tensor AnswerRows(const c10::IValue& output);

// Makes every parameter and statistic of the module a view into `flat`, which must hold table.size() elements on the
// module's device and outlive it. The values of `flat` are what counts from here on.
void BindParameters(Network& network, const at::Tensor& flat);

// Writes the job's initial values to `flat`, which holds table.size() elements. Not after BindParameters for a
// torchscript network, unless `flat` is the buffer it was bound to and still holds the stored values.
void WriteInitialParameters(const Network& network, uint64_t seed, float* flat);

}  // namespace millrace
