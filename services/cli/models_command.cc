#include "services/cli/models_command.h"

#include <cstdio>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(3);

std::string StateOf(const v1::ModelVersionStatus& version) {
  return FormatState(v1::ModelVersionStatus::State_Name(version.state()));
}

}  // namespace

void AddModelsFlags(CLI::App& app, ModelsOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  app.add_flag("--json", options.json, "one line of JSON instead of a table");
}

std::string FormatModelTable(const v1::ListModelsResponse& models) {
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "VERSION", "STATE", "ACCURACY", "REQUESTS", "PINNED", "REASON"}};
  for (const v1::ModelVersionStatus& version : models.versions()) {
    rows.push_back({version.model(), absl::StrCat(version.version()), StateOf(version),
                    version.accuracy() > 0 ? FormatPercent(version.accuracy()) : "-", FormatCount(version.requests()),
                    version.pinned() ? "pinned" : "", version.reason()});
  }
  return FormatColumns(rows);
}

std::string FormatModelsJson(const v1::ListModelsResponse& models) {
  nlohmann::ordered_json versions = nlohmann::ordered_json::array();
  for (const v1::ModelVersionStatus& version : models.versions()) {
    nlohmann::ordered_json row = {{"model", version.model()}, {"version", version.version()}};
    row["state"] = StateOf(version);
    row["accuracy"] = version.accuracy() > 0 ? nlohmann::ordered_json(version.accuracy()) : nullptr;
    row["requests"] = version.requests();
    row["pinned"] = version.pinned();
    row["reason"] = version.reason();
    versions.push_back(std::move(row));
  }
  const nlohmann::ordered_json json = {{"versions", std::move(versions)}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

int RunModels(const ModelsOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  const absl::StatusOr<v1::ListModelsResponse> models =
      PredictClient(options.target.address, options.target.credentials()).ListModels(kTimeout);
  if (!models.ok()) {
    std::fprintf(stderr, "millrace: %s: %s\n", options.target.address.c_str(),
                 std::string(models.status().message()).c_str());
    return ExitCodeFor(models.status());
  }
  std::fputs((options.json ? FormatModelsJson(*models) : FormatModelTable(*models)).c_str(), stdout);
  return kExitOk;
}

}  // namespace millrace
