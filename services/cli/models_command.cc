#include "services/cli/models_command.h"

#include <cstdio>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(3);

std::string StateOf(const v1::ModelVersionStatus& version) {
  return FormatState(v1::ModelVersionStatus::State_Name(version.state()));
}

std::string Format(const ModelsOptions& options, const ModelVersions& versions) {
  return options.json ? FormatModelsJson(versions) : FormatModelTable(versions);
}

absl::Status Print(const ModelsOptions& options) {
  PredictClient client(options.target.address, options.target.credentials());
  if (options.watch) {
    const char* between = "";
    return client.WatchVersions([&](const v1::WatchVersionsResponse& response) {
      std::printf("%s%s", between, Format(options, response.versions()).c_str());
      std::fflush(stdout);
      if (!options.json) between = "\n";
    });
  }
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListModelsResponse models, client.ListModels(kTimeout));
  std::fputs(Format(options, models.versions()).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddModelsFlags(CLI::App& app, ModelsOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  app.add_flag("--json", options.json, "one line of JSON instead of a table");
  app.add_flag("--watch", options.watch, "again after every change, until the service ends");
}

std::string FormatModelTable(const ModelVersions& versions) {
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "VERSION", "STATE", "ACCURACY", "REQUESTS", "PINNED", "REASON"}};
  for (const v1::ModelVersionStatus& version : versions) {
    rows.push_back({version.model(), absl::StrCat(version.version()), StateOf(version),
                    version.accuracy() > 0 ? FormatPercent(version.accuracy()) : "-", FormatCount(version.requests()),
                    version.pinned() ? "pinned" : "", version.reason()});
  }
  return FormatColumns(rows);
}

std::string FormatModelsJson(const ModelVersions& versions) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const v1::ModelVersionStatus& version : versions) {
    nlohmann::ordered_json row = {{"model", version.model()}, {"version", version.version()}};
    row["state"] = StateOf(version);
    row["accuracy"] = version.accuracy() > 0 ? nlohmann::ordered_json(version.accuracy()) : nullptr;
    row["requests"] = version.requests();
    row["pinned"] = version.pinned();
    row["reason"] = version.reason();
    all.push_back(std::move(row));
  }
  const nlohmann::ordered_json json = {{"versions", std::move(all)}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

int RunModels(const ModelsOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  const absl::Status status = Print(options);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "millrace: %s: %s\n", options.target.address.c_str(), std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace millrace
