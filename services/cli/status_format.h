#pragma once

#include <string>

#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/model.pb.h"

namespace millrace {

// What `millrace status` prints: who does what and waits for what, each with a newline at the end. Pure.
std::string FormatJobStatus(const v1::JobStatus& status);
std::string FormatModels(const v1::ListModelsResponse& models);

}  // namespace millrace
