#include "services/cli/status_format.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/text_format.h"

namespace millrace {
namespace {

std::string FormatModelVersion(const v1::ModelVersionStatus& version) {
  std::string text = FormatState(v1::ModelVersionStatus::State_Name(version.state()));
  if (version.accuracy() > 0) absl::StrAppend(&text, ", accuracy ", FormatPercent(version.accuracy()));
  absl::StrAppend(&text, ", ", FormatCount(version.requests()), " requests");
  if (!version.reason().empty()) absl::StrAppend(&text, ": ", version.reason());
  return text;
}

}  // namespace

std::string FormatModels(const v1::ListModelsResponse& models) {
  if (models.versions().empty()) return "  no model yet\n";
  std::vector<std::pair<std::string, std::string>> rows;
  for (const v1::ModelVersionStatus& version : models.versions()) {
    rows.emplace_back(absl::StrCat(version.model(), " version ", version.version()), FormatModelVersion(version));
  }
  return FormatTable(rows);
}

}  // namespace millrace
