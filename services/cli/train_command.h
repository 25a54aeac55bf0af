#pragma once

#include "services/cli/train_options.h"

namespace millrace {

// Runs a whole local cluster as child processes until the job is done and what came out is served and checked, prints
// the summary, and with --serve goes on serving. Returns the exit code: kExitOk; kExitUsage for flags that do not go
// together; kExitBadConfiguration for missing data, an output directory in use by an earlier run, an unusable path, a
// job that the services refuse; kExitFailure for all else, among it a dead parameter server (its last checkpoint is
// kept: --resume); kExitInterrupted after Ctrl-C or SIGTERM. Every child has ended when it returns.
//
// Call from the main thread before any other thread is started.
inline constexpr int kExitInterrupted = 130;
int RunTrain(const TrainOptions& options);

}  // namespace millrace
