#include "services/model/version_examiner.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace millrace {
namespace {

bool SameSignature(const ModelInfo& a, const ModelInfo& b) { return a.input == b.input && a.classes == b.classes; }

std::string SignatureText(const ModelInfo& info) {
  return absl::StrCat("[", info.input.channels, ", ", info.input.height, ", ", info.input.width, "] to ",
                      info.classes == 0 ? "a reconstruction" : absl::StrCat(info.classes, " classes"));
}

}  // namespace

VersionExaminer::VersionExaminer(Options options, LoadVersion load)
    : options_(std::move(options)), load_(std::move(load)) {}

VersionExaminer::Result VersionExaminer::Load(const std::string& directory, const std::string& model,
                                              uint64_t version) const {
  Result result{.load = load_(directory)};
  LoadResult& load = result.load;
  if (!load.status.ok()) return result;
  const ModelInfo& info = load.predictor->info();
  if (info.model != model || info.version != version) {
    load.status = absl::FailedPreconditionError(
        absl::StrCat("misplaced: its manifest says model ", info.model, " version ", info.version));
    load.refusal = "misplaced";
    return result;
  }
  if (!options_.canary_set) return result;
  const absl::StatusOr<std::optional<CanaryScore>> measured = options_.canary_set->Measure(*load.predictor);
  if (!measured.ok()) {
    load.status =
        absl::Status(measured.status().code(), absl::StrCat("on the canary set: ", measured.status().message()));
    return result;
  }
  result.score = *measured;
  if (!result.score) LogWarning("the canary set does not fit the model, and says nothing of it", {{"model", model}});
  return result;
}

void VersionExaminer::Compare(const LoadedVersion& live, Result& fresh) const {
  LoadResult& load = fresh.load;
  const ModelInfo& live_info = live.info();
  if (options_.same_signature && !SameSignature(load.predictor->info(), live_info)) {
    load.status = absl::FailedPreconditionError(
        absl::StrCat("incomparable: it maps ", SignatureText(load.predictor->info()), ", version ", live_info.version,
                     " which serves ", SignatureText(live_info), "; a pin makes it serve"));
    load.refusal = "incomparable";
  } else if (fresh.score && live.canary_score()) {
    load.status = CheckNotWorse(*fresh.score, *live.canary_score(), live_info.version, options_.canary_margin);
    if (!load.status.ok()) load.refusal = "worse";
  }
  fresh.by_comparison = !load.status.ok();
}

}  // namespace millrace
