// A job small enough to be run ten thousand times: its data, its model and what must come of it.
//
// The model's gradient is a pure function of weights, samples and noise seed, with values of many magnitudes, so that
// the order in which floats are added shows in the result.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/batch_key.h"
#include "common/model/trainable_model.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.pb.h"
#include "services/parameter_server/round_state.h"
#include "services/parameter_server/rounds.h"

namespace millrace::simulation {

// What the data service would answer.
v1::Batch ToyBatch(const v1::JobPlan& plan, const BatchKey& key);

std::vector<float> ToyInitialWeights(const v1::JobPlan& plan);

class ToyModel final : public TrainableModel {
 public:
  // `compute` is called for every batch, and takes the time it takes; false ends the computation with CANCELLED.
  ToyModel(std::span<const float> parameters, std::function<bool()> compute)
      : parameters_(parameters), compute_(std::move(compute)), gradient_(parameters.size()) {}

  uint64_t parameter_count() const override { return parameters_.size(); }
  absl::StatusOr<BatchResult> ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                              uint64_t noise_seed) override;
  std::span<const std::span<const float>> gradient() const override { return pieces_; }
  absl::StatusOr<BatchResult> Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) override;

 private:
  BatchResult Results(std::span<const uint8_t> images, std::span<const uint8_t> labels) const;

  const std::span<const float> parameters_;
  const std::function<bool()> compute_;
  std::vector<float> gradient_;
  std::vector<std::span<const float>> pieces_;
};

// The job done by one thread, slot after slot, with nothing of the ledger, the aggregator or the shards: what every
// schedule must come to, bit for bit.
class Reference {
 public:
  explicit Reference(const v1::JobPlan& plan);

  const std::vector<float>& weights(uint64_t version) const { return weights_[version]; }
  const std::string& weights_sha256(uint64_t version) const { return weights_sha256_[version]; }
  const std::string& optimizer_sha256(uint64_t version) const { return optimizer_sha256_[version]; }
  // Of each slot's gradient.
  const std::vector<uint64_t>& slot_checksums(uint64_t step) const { return slot_checksums_[step]; }
  const RoundSums& evaluation(const RoundId& round) const { return evaluations_.at({round.kind, round.version}); }

 private:
  // What comes out at the other end of the wire.
  std::vector<float> Travelled(std::vector<float> values) const;
  std::vector<float> NodeGradient(uint64_t step, uint32_t begin, uint32_t end, uint32_t width);
  void Evaluate(uint64_t version, v1::Lease::Kind kind);

  const v1::JobPlan plan_;
  std::vector<float> current_;
  std::vector<std::vector<float>> weights_;  // by version
  std::vector<std::string> weights_sha256_;
  std::vector<std::string> optimizer_sha256_;
  std::vector<std::vector<uint64_t>> slot_checksums_;  // by step
  std::map<std::pair<v1::Lease::Kind, uint64_t>, RoundSums> evaluations_;
};

}  // namespace millrace::simulation
