// The built-in networks as TorchScript source and a table of tensors. Knows no LibTorch: it only describes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// How a tensor's elements start: uniform in [center - limit, center + limit), or `center` for limit 0.
struct InitialValues {
  double center = 0;
  double limit = 0;
};

struct BuiltInTensor {
  std::string name;
  std::vector<int64_t> shape;
  InitialValues initial;
};

struct BuiltIn {
  std::vector<BuiltInTensor> parameters;  // trained, in the order of the flat vector
  std::vector<BuiltInTensor> statistics;  // what the forward pass keeps in training; behind the parameters
  // The method `forward`, which takes normalised pixels [n, channels, height, width]. Tensors are attributes of `self`,
  // and self.training tells training from evaluation.
  std::string source;
  std::string helpers;  // methods that `forward` calls; may be empty
  bool noise = false;   // training draws random numbers (dropout)
};

// INVALID_ARGUMENT for an unknown network, images too small for it, or a loss it is not made for.
absl::StatusOr<BuiltIn> DescribeBuiltIn(const v1::NetworkSpec& spec);

}  // namespace millrace
