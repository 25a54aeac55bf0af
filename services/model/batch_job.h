// One forward pass for rows of several requests: gathered, computed, and given back to whom they belong.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "services/model/batcher.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"
#include "services/model/row_runner.h"

namespace millrace {

// A request on its way through the engine, and what has become of it. Written under the engine's mutex but for
// `answer.values`, of which each running part has a range of its own, and `unwanted`.
struct EngineCall {
  uint64_t ticket = 0;
  std::shared_ptr<const LoadedVersion> version;
  InferenceRequest request;
  InferenceDone done;
  absl::Time start;

  InferenceAnswer answer;
  absl::Status fault;
  uint32_t rows_left = 0;
  int running_slices = 0;
  bool admitted = false;
  std::atomic<bool> unwanted = false;  // cancelled, or failed elsewhere: not worth computing
};

// Threads: one at a time, without the engine's mutex.
struct BatchJob {
  // What is computed of one call.
  struct Part {
    std::shared_ptr<EngineCall> call;
    uint32_t first_row = 0;
    uint32_t rows = 0;
    std::vector<uint8_t> decoded = {};  // of an image
    absl::Status fault = {};
  };

  // Computes what is still wanted and writes the answers' values, or the faults of the parts. A part fails alone: with
  // its picture, its deadline, the cancellation of its call, or the model on one of its rows. Counts in the version's
  // series.
  void Compute(const Clock& clock);

  Batcher::Batch batch;
  absl::Time taken;         // when the batcher gave it out
  std::vector<Part> parts;  // of one version, at least one
  uint32_t rows = 0;        // that were really computed
  absl::Time computing;     // when the forward pass began
  absl::Duration compute;   // how long it took

 private:
  void DecodePictures();
  // The last look at who still waits: the others get their fault.
  std::vector<Part*> StillWanted();
  static std::span<const uint8_t> PixelsOf(const Part& part);
  // The input of all in one piece, if need be copied to `gathered`.
  std::span<const uint8_t> Gather(const std::vector<Part*>& wanted, std::vector<uint8_t>& gathered) const;
  void Distribute(const std::vector<Part*>& wanted, RowAnswers answers);
};

}  // namespace millrace
