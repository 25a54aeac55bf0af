#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"

namespace millrace {

// Where and on what a run trains, once nothing speaks against it any more.
struct TrainSetup {
  std::string data_dir;                 // absolute, or synthetic:...
  std::vector<std::string> data_flags;  // of the data service, besides its directory and addresses
  uint32_t workers = 0;
  uint32_t shards = 0;
  uint32_t data_replicas = 0;
  std::optional<ClusterRecord> previous;  // of the run that is resumed
  OutputDirectory output;
};

// Settles what the flags leave open and catches the usual mistakes before any process is started: no dataset, a file
// or directory that cannot be written, results that would be lost, a port in use. Nothing is written unless all is
// well, and then only the output directory is made. The message names the path or address. FAILED_PRECONDITION or
// NOT_FOUND: the configuration is at fault; UNAVAILABLE: another process is in the way; RESOURCE_EXHAUSTED: disk full.
absl::StatusOr<TrainSetup> PrepareTrain(const TrainOptions& options);

}  // namespace millrace
