#pragma once

#include <string>

#include "millrace/v1/model.pb.h"

namespace millrace {

// What `millrace status` prints of a model service, a line a version, each with a newline at the end. Pure.
// (Of a job: common/job_text.h.)
std::string FormatModels(const v1::ListModelsResponse& models);

}  // namespace millrace
