// The networks by name and what follows from a network's kind. Knows no LibTorch, so that the command line can say the
// same as the processes that build networks.
#pragma once

#include <algorithm>
#include <array>
#include <string_view>

#include "millrace/v1/job.pb.h"

namespace millrace {

// What NetworkSpec.architecture may be, besides "torchscript" for a user's own module.
inline constexpr std::array<std::string_view, 6> kBuiltInNetworks = {"cnn",      "mlp", "lenet5",
                                                                     "cnn_deep", "rnn", "autoencoder"};
inline constexpr std::string_view kTorchscript = "torchscript";
inline constexpr std::string_view kBuiltInNetworkNames = "cnn, mlp, lenet5, cnn_deep, rnn, autoencoder";

inline bool IsBuiltInNetwork(std::string_view architecture) {
  return std::find(kBuiltInNetworks.begin(), kBuiltInNetworks.end(), architecture) != kBuiltInNetworks.end();
}

// The loss that a built-in network is made for, and a user's module has unless told otherwise.
inline v1::Loss OwnLoss(std::string_view architecture) {
  return architecture == "autoencoder" ? v1::LOSS_MSE : v1::LOSS_CROSS_ENTROPY;
}

// As --loss takes it.
inline std::string_view LossName(v1::Loss loss) { return loss == v1::LOSS_MSE ? "mse" : "cross_entropy"; }

// Never LOSS_UNSPECIFIED.
inline v1::Loss LossOf(const v1::NetworkSpec& network) {
  return network.loss() == v1::LOSS_UNSPECIFIED ? OwnLoss(network.architecture()) : network.loss();
}

// Whether the network's output is a class, so that there is an accuracy; else it is an image like its input.
inline bool Classifies(const v1::NetworkSpec& network) { return LossOf(network) == v1::LOSS_CROSS_ENTROPY; }

}  // namespace millrace
