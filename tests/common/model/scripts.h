// Users' own modules, as they would come from torch.jit.script. Includes LibTorch.
#pragma once

#include <torch/script.h>

#include <string>

namespace millrace {

// A linear layer over all pixels whose parameters count upwards: 0, 0.01, 0.02 ...
inline torch::jit::Module LinearScript(int64_t inputs, int64_t classes,
                                       const std::string& hidden = "x.flatten(1)") {
  torch::jit::Module module("__torch__.UserNetwork");
  const auto weight = torch::arange(inputs * classes, torch::kFloat32).mul(0.01).reshape({classes, inputs});
  module.register_parameter("weight", weight.set_requires_grad(true), /*is_buffer=*/false);
  module.register_parameter("bias", torch::zeros({classes}, torch::requires_grad()), /*is_buffer=*/false);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_buffer("mean", torch::zeros({inputs}));
  module.define("def forward(self, x):\n    x = " + hidden + "\n    return torch.linear(x, self.weight, self.bias)\n");
  return module;
}

inline torch::jit::Module DropoutScript(int64_t inputs, int64_t classes) {
  return LinearScript(inputs, classes, "torch.dropout(x.flatten(1), 0.5, self.training)");
}

// Keeps a running mean, as batch norm does.
inline torch::jit::Module RunningStatisticsScript(int64_t inputs, int64_t classes) {
  return LinearScript(inputs, classes, "x.flatten(1) - self.mean.mul_(0.9).add_(x.flatten(1).mean(0) * 0.1)");
}

}  // namespace millrace
