// A trainable copy of a network whose parameters are views into one flat buffer (DESIGN D4).
//
//   ConfigureTorch(1);
//   auto replica = Replica::Create(network);               // StatusOr
//   (*replica)->InitializeParameters(seed);                 // or write received weights into parameters()
//   auto result = (*replica)->ComputeGradient(images, labels);
//   for (std::span<const float> piece : (*replica)->gradient()) ...  // concatenated: the flat gradient
//
// The same parameters, samples and noise seed give the same gradient bits in every process with the same LibTorch,
// instruction set and intra-op thread count, whether it has just started or has run for days.
//
// Threads: one at a time. Ownership: spans point into the replica and live as long as it does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// Sums over the samples of one call.
struct BatchResult {
  uint32_t samples = 0;
  double loss_sum = 0;   // cross-entropy in nats; of training, the loss that is minimised
  uint32_t correct = 0;  // samples whose most probable class is the label
};

// Names, shapes and flat offsets of the network's parameters, without making a replica to train. INVALID_ARGUMENT for a
// specification no network can be built from, NOT_FOUND or FAILED_PRECONDITION for a torchscript file that is missing or
// has another digest.
absl::StatusOr<ParameterTable> NetworkParameters(const v1::NetworkSpec& network);

// The flat parameter vector a job starts from. Built-in networks: Glorot uniform weights and zero biases as in Keras,
// drawn from Philox keyed by (seed, index of the parameter), so they do not depend on LibTorch's generator. torchscript:
// the parameters stored in the file, whatever the seed.
absl::StatusOr<std::vector<float>> InitialParameters(const v1::NetworkSpec& network, uint64_t seed);

class Replica {
 public:
  // Errors as NetworkParameters; also INVALID_ARGUMENT for a torchscript network that cannot take the declared image
  // shape, that does not return float logits [n, classes], or that changes a buffer in its forward pass (batch norm's
  // running statistics: every worker would have its own).
  static absl::StatusOr<std::unique_ptr<Replica>> Create(const v1::NetworkSpec& network);
  ~Replica();
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  const v1::NetworkSpec& network() const;
  const ParameterTable& table() const;

  // The flat parameter vector, 64-byte aligned. Writing to it changes the network; the next call sees it.
  std::span<float> parameters();
  std::span<const float> parameters() const;

  // InitialParameters of this network.
  void InitializeParameters(uint64_t seed);

  // The share, in [0, 1), of the training target that all classes get alike: ComputeGradient's loss is the
  // cross-entropy with that target from now on; Evaluate's stays what it is. 0 at first.
  void set_label_smoothing(double share);

  // Forward and backward over n = labels.size() samples; images is uint8 [n, channels, height, width]. Afterwards
  // gradient() holds the gradient of the summed loss. n may be 0: the gradient is zero then. `noise_seed` feeds what
  // randomness the network has (dropout); a function of (job seed, step, slot) keeps training reproducible.
  // INVALID_ARGUMENT if the sizes do not match or a label is not below the class count; INTERNAL if LibTorch fails.
  absl::StatusOr<BatchResult> ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                              uint64_t noise_seed);

  // One contiguous piece per parameter, in table order: concatenated, they are the flat gradient. Pieces instead of one
  // buffer because autograd makes a tensor per parameter: whoever sums or sends them reads them once, where they are.
  // Valid until the next call of ComputeGradient.
  std::span<const std::span<const float>> gradient() const;

  // Forward only, in evaluation mode.
  absl::StatusOr<BatchResult> Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels);

 private:
  struct State;
  explicit Replica(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace millrace
