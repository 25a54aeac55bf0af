// A trainable copy of a network whose parameters and statistics are views into one flat buffer (DESIGN D4).
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
// Statistics are what the forward pass changes in training: batch normalisation's running mean and variance. They lie
// behind the parameters in the flat vector and travel as these do. ComputeGradient leaves them as they were, and what
// it gives for them instead of a gradient is their change times the number of samples: added over the slots and divided
// by the step's samples, it is the sample-weighted mean of the slots' changes. For an exponential moving average that
// is the moving average of the mean of the slots' own statistics. During training each slot is normalised by its own
// samples ("ghost" batch normalisation), so that nothing depends on which slots a worker computes.
//
// Threads: one at a time. Ownership: spans point into the replica and live as long as it does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/trainable_model.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// What a job needs to know about a network.
struct NetworkInfo {
  ParameterTable table;
  // A slot must be empty or have so many samples: batch normalisation of vectors cannot do with one.
  uint32_t slot_samples_min = 1;
};

// Describes the network without making a replica to train. INVALID_ARGUMENT for a specification no network can be built
// from, or a torchscript network that cannot take the declared image shape, that does not return float logits
// [n, classes] (float images of the input's shape for the loss mse), or that keeps state which cannot be added up over
// slots (script_probe.h); NOT_FOUND or FAILED_PRECONDITION for a torchscript file that is missing or has another
// digest.
absl::StatusOr<NetworkInfo> DescribeNetwork(const v1::NetworkSpec& network);

// Names, shapes and flat offsets of the network's parameters and statistics. Errors as DescribeNetwork.
absl::StatusOr<ParameterTable> NetworkParameters(const v1::NetworkSpec& network);

// The flat vector a job starts from. Built-in networks: Glorot uniform weights and zero biases as in Keras (but the
// rnn's as in PyTorch), drawn from Philox keyed by (seed, index of the parameter), so they do not depend on LibTorch's
// generator. torchscript: what is stored in the file, whatever the seed.
absl::StatusOr<std::vector<float>> InitialParameters(const v1::NetworkSpec& network, uint64_t seed);

class Replica : public TrainableModel {
 public:
  struct Options {
    std::string device = "cpu";  // as ResolveDevice (device.h) gave it
    // Computes on a copy of the flat vector, as on a device with a memory of its own, also on the processor: for tests.
    bool own_memory = false;
  };

  // Errors as DescribeNetwork.
  static absl::StatusOr<std::unique_ptr<Replica>> Create(const v1::NetworkSpec& network);
  static absl::StatusOr<std::unique_ptr<Replica>> Create(const v1::NetworkSpec& network, const Options& options);
  ~Replica() override;
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  const v1::NetworkSpec& network() const;
  const ParameterTable& table() const;
  uint64_t parameter_count() const override { return table().size(); }

  // The flat vector, in host memory and 64-byte aligned. Writing to it changes the network; the next call sees it.
  std::span<float> parameters();
  std::span<const float> parameters() const;

  // InitialParameters of this network.
  void InitializeParameters(uint64_t seed);

  // The share, in [0, 1), of the training target that all classes get alike: ComputeGradient's loss is the
  // cross-entropy with that target from now on; Evaluate's stays what it is. 0 at first.
  void set_label_smoothing(double share);

  // Forward and backward over n = labels.size() samples; images is uint8 [n, channels, height, width]. Afterwards
  // gradient() holds the gradient of the summed loss and the statistics' changes times n. n may be 0: all is zero then.
  // `noise_seed` feeds what randomness the network has (dropout); a function of (job seed, step, slot) keeps training
  // reproducible.
  // INVALID_ARGUMENT if the sizes do not match or a label is not below the class count; INTERNAL if LibTorch fails.
  absl::StatusOr<BatchResult> ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                              uint64_t noise_seed) override;

  // Contiguous pieces, one per parameter in table order and one for all statistics: concatenated, they are the flat
  // gradient. Pieces instead of one buffer because autograd makes a tensor per parameter: whoever sums or sends them
  // reads them once, where they are. Valid until the next call of ComputeGradient.
  std::span<const std::span<const float>> gradient() const override;

  // Forward only, in evaluation mode.
  absl::StatusOr<BatchResult> Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) override;

 private:
  struct State;
  explicit Replica(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace millrace
