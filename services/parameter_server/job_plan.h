// From what the user asks for (JobSpec) to what every part of the job does (JobPlan). The plan still lacks what belongs
// to one run: run id, start version and directories.
//
// Errors: INVALID_ARGUMENT that names the field, its value and the limit; for a torchscript file also NOT_FOUND and
// others of the file system.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Reads protobuf text format; an error names line and column.
absl::StatusOr<v1::JobSpec> ParseJobSpec(std::string_view text);

// Checks every field against its declared limits.
absl::Status ValidateJobSpec(const v1::JobSpec& spec);

// Checks that job and dataset fit together, and fills in network, parameter count and steps. Builds the network once.
// The spec must be valid.
absl::StatusOr<v1::JobPlan> ResolveJobPlan(const v1::JobSpec& spec, const v1::DatasetInfo& dataset);

}  // namespace millrace
