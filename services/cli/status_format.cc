#include "services/cli/status_format.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "services/cli/progress.h"
#include "services/cli/text_format.h"

namespace millrace {
namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

// "STATE_TRAINING" -> "training"
std::string StateName(absl::string_view name) { return absl::AsciiStrToLower(absl::StripPrefix(name, "STATE_")); }

std::string FormatWorker(const v1::WorkerStatus& worker) {
  return absl::StrFormat("%s (process %d, %s samples, last heard %.1f s ago)",
                         worker.doing().empty() ? "idle" : worker.doing(), worker.process_id(),
                         FormatCount(worker.samples()), worker.last_heard_seconds());
}

std::string FormatModelVersion(const v1::ModelVersionStatus& version) {
  std::string text = StateName(v1::ModelVersionStatus::State_Name(version.state()));
  if (version.accuracy() > 0) absl::StrAppend(&text, ", accuracy ", FormatPercent(version.accuracy()));
  absl::StrAppend(&text, ", ", FormatCount(version.requests()), " requests");
  if (!version.reason().empty()) absl::StrAppend(&text, ": ", version.reason());
  return text;
}

}  // namespace

std::string FormatJobStatus(const v1::JobStatus& status) {
  Rows rows = {
      {"job", absl::StrFormat("%s, %s", status.plan().spec().model_name(),
                              StateName(v1::JobStatus::State_Name(status.state())))},
      {"progress", FormatProgress(status)},
      {"waiting for", status.waiting_for().empty() ? "nothing" : status.waiting_for()},
      {"checkpoint",
       status.committed_version() == 0 ? "none yet" : absl::StrCat("step ", FormatCount(status.committed_version()))},
      {"servable", status.exported_version() == 0 ? "none yet" : absl::StrCat("version ", status.exported_version())},
      {"leases", absl::StrFormat("%d granted again, %d duplicate results, %d checksum mismatches",
                                 status.regranted_leases(), status.duplicate_results(), status.checksum_mismatches())},
  };
  for (const v1::ShardInfo& shard : status.shards()) {
    rows.emplace_back(absl::StrCat("shard ", shard.shard()),
                      absl::StrFormat("parameters %d to %d at %s", shard.begin(), shard.end(), shard.address()));
  }
  for (const v1::WorkerStatus& worker : status.workers()) rows.emplace_back(worker.worker(), FormatWorker(worker));
  return FormatTable(rows);
}

std::string FormatModels(const v1::ListModelsResponse& models) {
  if (models.versions().empty()) return "  no model yet\n";
  Rows rows;
  for (const v1::ModelVersionStatus& version : models.versions()) {
    rows.emplace_back(absl::StrCat(version.model(), " version ", version.version()), FormatModelVersion(version));
  }
  return FormatTable(rows);
}

}  // namespace millrace
