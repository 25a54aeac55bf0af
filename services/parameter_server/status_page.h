#pragma once

#include <string>

#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// The job's status as text for /statusz: what it is doing, what it waits for, who takes part.
std::string RenderJobStatus(const v1::JobStatus& status);

}  // namespace millrace
