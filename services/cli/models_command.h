#pragma once

#include <string>

#include "millrace/v1/model.pb.h"
#include "services/cli/target.h"

namespace millrace {

struct ModelsOptions {
  Target target = {};
  bool json = false;
  bool watch = false;
};

void AddModelsFlags(CLI::App& app, ModelsOptions& options);

// Prints the versions of a model service's models as a table, or as a line of JSON; to watch, again after every change,
// until the service ends. Returns the exit code.
int RunModels(const ModelsOptions& options);

using ModelVersions = google::protobuf::RepeatedPtrField<v1::ModelVersionStatus>;

// A heading, then a line a version. Pure, as is the next.
std::string FormatModelTable(const ModelVersions& versions);
// {"versions": [{"model", "version", "state", "accuracy" (null if not known), "requests", "pinned", "reason"}]} and a
// newline.
std::string FormatModelsJson(const ModelVersions& versions);

}  // namespace millrace
