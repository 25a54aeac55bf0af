#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/data/samples.h"

namespace millrace {

// What can be wrong with a sample. Images are compared pixel by pixel.
enum class Fault {
  kBadLabel,   // not a class
  kConstant,   // every pixel is the same
  kConflict,   // an image of its own split with the same pixels has another label: which is right nobody knows
  kDuplicate,  // the image and label of an earlier sample of its split
  kLeak,       // a train image that is also a test image: tests would ask what was learned by heart
};
inline constexpr int kFaultCount = 5;

enum class CleanAction {
  kRefuse,  // the dataset
  kDrop,    // the samples; they are gone from everything, the fingerprint included
  kKeep,    // the samples
};

// What is done about each fault. Without being told: what may be meant stays, a label that is no class is refused.
struct CleanPolicy {
  std::array<CleanAction, kFaultCount> actions = {CleanAction::kRefuse, CleanAction::kKeep, CleanAction::kKeep,
                                                  CleanAction::kKeep, CleanAction::kKeep};

  CleanAction of(Fault fault) const { return actions[static_cast<size_t>(fault)]; }
};

// "drop", or "keep" or "refuse", for every fault, or "duplicates=drop,labels=refuse", or both: "keep,leaks=drop". The
// faults are called labels, constant, conflicts, duplicates and leaks. INVALID_ARGUMENT names what is wrong.
absl::StatusOr<CleanPolicy> ParseCleanPolicy(std::string_view text);

// What was found, and what became of it.
struct CleaningReport {
  struct Finding {
    uint64_t train = 0, test = 0;       // samples
    std::vector<std::string> examples;  // of at most 5: "train sample 17 equals train sample 4"
    CleanAction action = CleanAction::kKeep;
  };

  const Finding& of(Fault fault) const { return findings[static_cast<size_t>(fault)]; }
  uint64_t dropped() const { return dropped_train + dropped_test; }
  // A table, one line a fault, with examples; "nothing found" if all is well. Lines end with a newline.
  std::string ToString() const;

  std::array<Finding, kFaultCount> findings;
  uint64_t dropped_train = 0, dropped_test = 0;
  std::vector<uint64_t> train_class_counts, test_class_counts;  // by label, of what remains
};

// Examines both splits and takes out what the policy says; the others keep their order. A sample with several faults
// counts for each of them, except that a bad label or a constant image is not compared with others. `classes` is how
// many there are, which labels must be less than.
//
// DATA_LOSS, saying what was found and how to go on, if the policy refuses it, or if nothing would be left to train or
// to test on.
absl::StatusOr<CleaningReport> Clean(MemorySamples& train, MemorySamples& test, uint32_t classes,
                                     const CleanPolicy& policy);

// The number of classes of a dataset that does not say: the largest train label + 1, if every label from 1 up to it
// occurs (some sets count from 1). A label behind one that never occurs is taken for damaged: unless the policy is to
// keep bad labels, the classes end where the first is missing, so that Clean finds it. 0 if every label is 0.
uint32_t DeriveClasses(const MemorySamples& train, const CleanPolicy& policy);

}  // namespace millrace
