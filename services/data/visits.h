// Visits: every use of a train sample in an epoch is a visit, and has a 64-bit hash. The sum of the hashes (mod 2^64)
// says which samples were visited how often, whatever the order, the slots and the workers: two sums are equal if the
// same samples were visited equally often and, but for an accident of 1 in 2^64, only then.
//
//   M(z): SplitMix64's finalizer: z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9; z = (z ^ z >> 27) * 0x94D049BB133111EB;
//     z ^ z >> 31
//   G = 0x9E3779B97F4A7C15
//   key = M(M(seed + G) + epoch + G)
//   hash of sample i, an index into the train files: M(key + G * (i + 1)), all mod 2^64
// that is, output i of the generator SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014) that starts from `key`. Golden values are in its test: digests of two runs are compared.
//
// It finds mistakes. It is no protection from malice.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "millrace/v1/data.pb.h"
#include "services/data/dataset.h"

namespace millrace {

// The hash of one visit in an epoch. Immutable: any thread.
class VisitHash {
 public:
  VisitHash(uint64_t seed, uint64_t epoch) : key_(Mix(Mix(seed + kGamma) + epoch + kGamma)) {}

  uint64_t operator()(uint64_t sample) const { return Mix(key_ + kGamma * (sample + 1)); }

 private:
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;

  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  uint64_t key_;
};

// What the visits of some steps must add up to. Of a whole epoch that is found from the files: every sample of them
// once, less the validation samples, so that a permutation that is none is found out. Pure.
// FAILED_PRECONDITION for another dataset; INVALID_ARGUMENT or OUT_OF_RANGE for steps that do not exist, or that have
// more samples than kExpectedVisitsMax.
absl::StatusOr<v1::ExpectedVisits> ExpectVisits(const Dataset& dataset, const v1::ExpectedVisitsRequest& request);

}  // namespace millrace
