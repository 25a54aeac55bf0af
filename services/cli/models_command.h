#pragma once

#include <string>

#include "millrace/v1/model.pb.h"
#include "services/cli/target.h"

namespace millrace {

struct ModelsOptions {
  Target target = {};
  bool json = false;
};

void AddModelsFlags(CLI::App& app, ModelsOptions& options);

// Prints the versions of a model service's models as a table, or as a line of JSON. Returns the exit code.
int RunModels(const ModelsOptions& options);

// A heading, then a line a version. Pure, as is the next.
std::string FormatModelTable(const v1::ListModelsResponse& models);
// {"versions": [{"model", "version", "state", "accuracy" (null if not known), "requests", "pinned", "reason"}]} and a
// newline.
std::string FormatModelsJson(const v1::ListModelsResponse& models);

}  // namespace millrace
