#include "common/model/built_in.h"

#include <cmath>
#include <iterator>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/networks.h"
#include "common/strings.h"

namespace millrace {
namespace {

// Glorot uniform, as Keras' default.
InitialValues Glorot(int64_t fan_in, int64_t fan_out) {
  return {.limit = std::sqrt(6.0 / static_cast<double>(fan_in + fan_out))};
}

void AddDense(BuiltIn& network, const std::string& name, int64_t inputs, int64_t outputs) {
  network.parameters.push_back({name + "_weight", {outputs, inputs}, Glorot(inputs, outputs)});
  network.parameters.push_back({name + "_bias", {outputs}, {}});
}

void AddConvolutionWeight(BuiltIn& network, const std::string& name, int64_t inputs, int64_t outputs, int64_t side) {
  network.parameters.push_back(
      {name + "_weight", {outputs, inputs, side, side}, Glorot(side * side * inputs, side * side * outputs)});
}

void AddConvolution(BuiltIn& network, const std::string& name, int64_t inputs, int64_t outputs, int64_t side) {
  AddConvolutionWeight(network, name, inputs, outputs, side);
  network.parameters.push_back({name + "_bias", {outputs}, {}});
}

void AddBatchNorm(BuiltIn& network, const std::string& name, int64_t channels) {
  network.parameters.push_back({name + "_weight", {channels}, {.center = 1}});
  network.parameters.push_back({name + "_bias", {channels}, {}});
  network.statistics.push_back({name + "_mean", {channels}, {}});
  network.statistics.push_back({name + "_variance", {channels}, {.center = 1}});
}

int64_t PixelsOf(const v1::NetworkSpec& spec) { return int64_t{spec.channels()} * spec.height() * spec.width(); }

// Keras: Conv2D(32, 3x3, relu) -> MaxPool 2x2 -> Flatten -> Dense(128, relu) -> Dense(classes). Two rewrites that leave
// the function as it is: pooling before relu (a quarter of the work, and max and relu commute), and flattening in
// height-width-channel order, which is Keras' own order and a free view of channels-last activations.
BuiltIn Cnn(const v1::NetworkSpec& spec) {
  constexpr int64_t kFilters = 32, kHidden = 128;
  BuiltIn network;
  AddConvolution(network, "conv", spec.channels(), kFilters, 3);
  AddDense(network, "hidden", kFilters * ((spec.height() - 2) / 2) * ((spec.width() - 2) / 2), kHidden);
  AddDense(network, "output", kHidden, spec.classes());
  network.source = R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv_weight, self.conv_bias)
    x = torch.relu(torch.max_pool2d(x, [2, 2]))
    x = x.permute(0, 2, 3, 1).reshape(x.size(0), -1)
    x = torch.relu(torch.linear(x, self.hidden_weight, self.hidden_bias))
    return torch.linear(x, self.output_weight, self.output_bias)
)";
  return network;
}

// Two hidden layers of 1024: a model of more than gRPC's default message limit for the smallest images already.
BuiltIn Mlp(const v1::NetworkSpec& spec) {
  constexpr int64_t kHidden = 1024;
  BuiltIn network;
  AddDense(network, "hidden1", PixelsOf(spec), kHidden);
  AddDense(network, "hidden2", kHidden, kHidden);
  AddDense(network, "output", kHidden, spec.classes());
  network.source = R"(
def forward(self, x):
    x = x.flatten(1)
    x = torch.relu(torch.linear(x, self.hidden1_weight, self.hidden1_bias))
    x = torch.relu(torch.linear(x, self.hidden2_weight, self.hidden2_bias))
    return torch.linear(x, self.output_weight, self.output_bias)
)";
  return network;
}

// LeNet-5 (LeCun et al. 1998) as it is built today: relu and max-pooling instead of tanh and trained averages.
BuiltIn LeNet5(const v1::NetworkSpec& spec) {
  BuiltIn network;
  AddConvolution(network, "conv1", spec.channels(), 6, 5);
  AddConvolution(network, "conv2", 6, 16, 5);
  AddDense(network, "hidden1", 16 * ((spec.height() / 2 - 4) / 2) * ((spec.width() / 2 - 4) / 2), 120);
  AddDense(network, "hidden2", 120, 84);
  AddDense(network, "output", 84, spec.classes());
  network.source = R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv1_weight, self.conv1_bias, padding=[2, 2])
    x = torch.relu(torch.max_pool2d(x, [2, 2]))
    x = torch.conv2d(x, self.conv2_weight, self.conv2_bias)
    x = torch.relu(torch.max_pool2d(x, [2, 2]))
    x = x.permute(0, 2, 3, 1).reshape(x.size(0), -1)
    x = torch.relu(torch.linear(x, self.hidden1_weight, self.hidden1_bias))
    x = torch.relu(torch.linear(x, self.hidden2_weight, self.hidden2_bias))
    return torch.linear(x, self.output_weight, self.output_bias)
)";
  return network;
}

// Four convolutions with batch normalisation and dropout before the one dense layer. Pooling comes first in a block:
// normalisation and relu, which are bound by memory, then have a quarter of the elements to go through.
BuiltIn CnnDeep(const v1::NetworkSpec& spec) {
  constexpr int64_t kFilters1 = 32, kFilters2 = 64, kFilters3 = 64, kFilters4 = 128;
  BuiltIn network;
  network.noise = true;
  AddConvolutionWeight(network, "conv1", spec.channels(), kFilters1, 5);
  AddBatchNorm(network, "norm1", kFilters1);
  AddConvolutionWeight(network, "conv2", kFilters1, kFilters2, 3);
  AddBatchNorm(network, "norm2", kFilters2);
  AddConvolutionWeight(network, "conv3", kFilters2, kFilters3, 3);
  AddBatchNorm(network, "norm3", kFilters3);
  AddConvolutionWeight(network, "conv4", kFilters3, kFilters4, 3);
  AddBatchNorm(network, "norm4", kFilters4);
  AddDense(network, "output", kFilters4 * (spec.height() / 4 - 2) * (spec.width() / 4 - 2), spec.classes());
  network.helpers = R"(
def norm(self, x, weight, bias, mean, variance):
    return torch.relu(torch.batch_norm(x, weight, bias, mean, variance, self.training, 0.1, 1e-5, False))
)";
  network.source = R"(
def forward(self, x):
    x = torch.max_pool2d(torch.conv2d(x, self.conv1_weight, None, padding=[2, 2]), [2, 2])
    x = self.norm(x, self.norm1_weight, self.norm1_bias, self.norm1_mean, self.norm1_variance)
    x = torch.max_pool2d(torch.conv2d(x, self.conv2_weight, None, padding=[1, 1]), [2, 2])
    x = self.norm(x, self.norm2_weight, self.norm2_bias, self.norm2_mean, self.norm2_variance)
    x = torch.conv2d(x, self.conv3_weight, None, padding=[1, 1])
    x = self.norm(x, self.norm3_weight, self.norm3_bias, self.norm3_mean, self.norm3_variance)
    x = torch.conv2d(x, self.conv4_weight)
    x = self.norm(x, self.norm4_weight, self.norm4_bias, self.norm4_mean, self.norm4_variance)
    x = x.permute(0, 2, 3, 1).reshape(x.size(0), -1)
    x = torch.dropout(x, 0.3, self.training)
    return torch.linear(x, self.output_weight, self.output_bias)
)";
  return network;
}

// An LSTM that reads the image row by row from the top; the last state decides. Starts as PyTorch's: uniform in
// 1 / sqrt(hidden), biases too.
BuiltIn Rnn(const v1::NetworkSpec& spec) {
  constexpr int64_t kHidden = 128;
  constexpr int64_t kGates = 4 * kHidden;
  const int64_t row = int64_t{spec.channels()} * spec.width();
  const InitialValues uniform{.limit = 1.0 / std::sqrt(static_cast<double>(kHidden))};
  BuiltIn network;
  network.parameters = {{"input_weight", {kGates, row}, uniform},
                        {"state_weight", {kGates, kHidden}, uniform},
                        {"input_bias", {kGates}, uniform},
                        {"state_bias", {kGates}, uniform}};
  AddDense(network, "output", kHidden, spec.classes());
  network.source = R"(
def forward(self, x):
    rows = x.permute(2, 0, 1, 3).reshape(x.size(2), x.size(0), -1)
    zeros = torch.zeros([1, x.size(0), self.state_weight.size(1)], dtype=x.dtype, device=x.device)
    weights = [self.input_weight, self.state_weight, self.input_bias, self.state_bias]
    states, last, cell = torch.lstm(rows, [zeros, zeros], weights, True, 1, 0.0, self.training, False, False)
    return torch.linear(last[0], self.output_weight, self.output_bias)
)";
  return network;
}

// Down to 32 numbers and back.
BuiltIn Autoencoder(const v1::NetworkSpec& spec) {
  constexpr int64_t kHidden = 512, kBottleneck = 32;
  BuiltIn network;
  AddDense(network, "encode1", PixelsOf(spec), kHidden);
  AddDense(network, "encode2", kHidden, kBottleneck);
  AddDense(network, "decode1", kBottleneck, kHidden);
  AddDense(network, "decode2", kHidden, PixelsOf(spec));
  network.source = R"(
def forward(self, x):
    y = torch.relu(torch.linear(x.flatten(1), self.encode1_weight, self.encode1_bias))
    y = torch.linear(y, self.encode2_weight, self.encode2_bias)
    y = torch.relu(torch.linear(y, self.decode1_weight, self.decode1_bias))
    y = torch.sigmoid(torch.linear(y, self.decode2_weight, self.decode2_bias))
    return y.reshape(x.size(0), x.size(1), x.size(2), x.size(3))
)";
  return network;
}

struct Entry {
  std::string_view name;
  uint32_t side_min;  // of the images, in pixels
  BuiltIn (*describe)(const v1::NetworkSpec&);
};
constexpr Entry kEntries[] = {
    {"cnn", 4, Cnn},
    {"mlp", 1, Mlp},
    {"lenet5", 12, LeNet5},
    // The last convolution leaves 2x2 positions of the smallest image: statistics of a slot with one sample need two.
    {"cnn_deep", 16, CnnDeep},
    {"rnn", 1, Rnn},
    {"autoencoder", 1, Autoencoder},
};
static_assert(std::size(kEntries) == kBuiltInNetworks.size());

}  // namespace

absl::StatusOr<BuiltIn> DescribeBuiltIn(const v1::NetworkSpec& spec) {
  for (const Entry& entry : kEntries) {
    if (entry.name != spec.architecture()) continue;
    if (spec.height() < entry.side_min || spec.width() < entry.side_min) {
      return absl::InvalidArgumentError(absl::StrFormat("network %s needs images of at least %ux%u pixels, got %ux%u",
                                                        spec.architecture(), entry.side_min, entry.side_min,
                                                        spec.height(), spec.width()));
    }
    if (LossOf(spec) != OwnLoss(entry.name)) {
      return absl::InvalidArgumentError(absl::StrCat("network ", spec.architecture(), " is made for the loss ",
                                                     ToAbsl(LossName(OwnLoss(entry.name))), ", not for ",
                                                     ToAbsl(LossName(LossOf(spec)))));
    }
    return entry.describe(spec);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown network \"", spec.architecture(), "\"; there are ",
                                                 ToAbsl(kBuiltInNetworkNames), " and torchscript"));
}

}  // namespace millrace
