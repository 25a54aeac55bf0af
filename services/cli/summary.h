#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// What the model service answered for the test images.
struct ServedResult {
  uint64_t version = 0;
  uint64_t requests = 0;
  uint64_t failed = 0;
  double accuracy = 0;  // correct answers / requests
  std::optional<double> error{};  // mean of the reconstructions; then there is no accuracy
  double p50_ms = 0;
  double p99_ms = 0;
};

// How a training run ended.
struct TrainSummary {
  v1::JobStatus status{};  // of the finished job
  uint32_t workers = 0;
  double wall_seconds = 0;  // the whole command
  int recoveries = 0;       // how often the job went back to a checkpoint
  double seconds_lost = 0;  // without a step, by all recoveries
  std::optional<ServedResult> served{};
  std::string out{};
};

// Mean over this run's train rounds; 0 if there were none.
double ImagesPerSecond(const v1::JobStatus& status);

// The table for people, with a newline at the end. Pure.
std::string FormatSummary(const TrainSummary& summary);

// The JSON object that `train --json` writes; "served" is null without a model service. Pure.
std::string SummaryJson(const TrainSummary& summary);

}  // namespace millrace
