// Users' own modules, as they would come from torch.jit.script. Includes LibTorch.
#pragma once

#include <torch/script.h>

#include <string>

namespace millrace {

// A linear layer over all pixels whose parameters count upwards: 0, 0.01, 0.02 ...
inline torch::jit::Module LinearScript(int64_t inputs, int64_t classes,
                                       const std::string& hidden = "x.flatten(1)",
                                       const std::string& helpers = "") {
  torch::jit::Module module("__torch__.UserNetwork");
  const auto weight = torch::arange(inputs * classes, torch::kFloat32).mul(0.01).reshape({classes, inputs});
  module.register_parameter("weight", weight.set_requires_grad(true), /*is_buffer=*/false);
  module.register_parameter("bias", torch::zeros({classes}, torch::requires_grad()), /*is_buffer=*/false);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_buffer("mean", torch::zeros({inputs}));
  module.register_buffer("total", torch::zeros({}, torch::kFloat64));
  module.define(helpers + "def forward(self, x):\n    x = " + hidden + "\n    return torch.linear(x, self.weight, self.bias)\n");
  return module;
}

inline torch::jit::Module DropoutScript(int64_t inputs, int64_t classes) {
  return LinearScript(inputs, classes, "torch.dropout(x.flatten(1), 0.5, self.training)");
}

// Keeps a running mean, by exponential averaging of its own.
inline torch::jit::Module RunningMeanScript(int64_t inputs, int64_t classes) {
  return LinearScript(inputs, classes, "x.flatten(1) - self.mean.mul_(0.9).add_(x.flatten(1).mean(0) * 0.1)");
}

// Puts a new tensor in the place of its running mean.
inline torch::jit::Module ReplacedMeanScript(int64_t inputs, int64_t classes) {
  return LinearScript(inputs, classes, "self.average(x.flatten(1))",
                      "def average(self, x):\n    self.mean = self.mean * 0.9 + x.mean(0) * 0.1\n"
                      "    return x - self.mean\n");
}

// What torch.jit.script makes of Sequential(BatchNorm2d(channels), Flatten(), Linear(inputs, classes)), or with
// `pixels_are_channels` of Sequential(Flatten(), BatchNorm1d(inputs), Linear(inputs, classes)). `momentum` is an
// expression: "0.1", or for momentum=None one that reads self.batches. `count` is how the batches are counted.
inline torch::jit::Module BatchNormScript(int64_t channels, int64_t inputs, int64_t classes,
                                          bool pixels_are_channels = false, const std::string& momentum = "0.1",
                                          const std::string& count = "self.batches.add_(1)") {
  torch::jit::Module module("__torch__.UserNetwork");
  const int64_t normed = pixels_are_channels ? inputs : channels;
  const auto weight = torch::arange(inputs * classes, torch::kFloat32).mul(0.01).sin().reshape({classes, inputs});
  module.register_parameter("weight", weight.set_requires_grad(true), /*is_buffer=*/false);
  module.register_parameter("gamma", torch::ones({normed}, torch::requires_grad()), /*is_buffer=*/false);
  module.register_parameter("beta", torch::zeros({normed}, torch::requires_grad()), /*is_buffer=*/false);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_buffer("running_mean", torch::zeros({normed}));
  module.register_buffer("running_var", torch::ones({normed}));
  module.register_buffer("batches", torch::zeros({}, torch::kInt64));
  const std::string flatten = pixels_are_channels ? "    x = x.flatten(1)\n" : "";
  module.define(
      "def forward(self, x):\n" + flatten +
      "    if self.training:\n"
      "        assert x.numel() // x.size(1) > 1, 'Expected more than 1 value per channel when training'\n"
      "        " +
      count +
      "\n"
      "    x = torch.batch_norm(x, self.gamma, self.beta, self.running_mean, self.running_var, self.training, " +
      momentum +
      ", 1e-5, True)\n"
      "    return torch.linear(x.flatten(1), self.weight)\n");
  return module;
}

// An image of the input's shape: every pixel times a trained factor, its own.
inline torch::jit::Module ScaleScript(int64_t channels, int64_t height, int64_t width) {
  torch::jit::Module module("__torch__.UserNetwork");
  module.register_parameter("factor", torch::full({channels, height, width}, 0.5).set_requires_grad(true), false);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.define("def forward(self, x):\n    return x * self.factor\n");
  return module;
}

}  // namespace millrace
