// What a worker's step loop computes with: the replica of a network (replica.h), or in a simulation something as
// deterministic and a thousand times faster.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace millrace {

// Sums over the samples of one call.
struct BatchResult {
  uint32_t samples = 0;
  // Of the network's loss: nats, or the mean squared error of a pixel in [0, 1]. Of training, the loss that is minimised.
  double loss_sum = 0;
  uint32_t correct = 0;  // samples whose most probable class is the label; 0 if the network does not classify
};

// Reads its parameters where whoever made it put them. Threads: one at a time.
class TrainableModel {
 public:
  virtual ~TrainableModel() = default;

  virtual uint64_t parameter_count() const = 0;
  // The gradient of the loss summed over labels.size() samples is in gradient() afterwards: pieces that concatenated
  // are the flat gradient, valid until the next call. The same parameters, samples and seed give the same bits
  // anywhere.
  virtual absl::StatusOr<BatchResult> ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                                      uint64_t noise_seed) = 0;
  virtual std::span<const std::span<const float>> gradient() const = 0;
  virtual absl::StatusOr<BatchResult> Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) = 0;
};

}  // namespace millrace
