#include "services/parameter_server/visit_audit.h"

#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

// The ledger holds training at two unsettled boundaries.
constexpr size_t kBoundariesKept = 4;

v1::VisitCheck NothingSince(const v1::JobPlan& plan, uint64_t version) {
  v1::VisitCheck check;
  check.set_epoch(EpochOf(plan, version));
  check.set_begin(version);
  check.set_end(version);
  return check;
}

void Add(uint64_t step, const RoundSums& sums, v1::VisitCheck& check) {
  check.set_end(step + 1);
  check.set_samples(check.samples() + sums.samples);
  check.set_visits(check.visits() + sums.visits);
}

}  // namespace

void VisitAudit::BeginRun(const v1::JobPlan& plan, const std::optional<v1::VisitCheck>& epoch_so_far) {
  const uint64_t version = plan.start_version(), epoch = EpochOf(plan, version);
  part_ = NothingSince(plan, version);
  at_boundary_.clear();
  // What was trained since then does not count any more.
  std::erase_if(checks_, [&](const v1::VisitCheck& shown) { return shown.end() > version; });
  if (version % plan.steps_per_epoch() == 0) {
    whole_ = part_;
  } else {
    whole_ = epoch_so_far;
    const bool fits = whole_.has_value() && whole_->end() == version && whole_->epoch() == epoch &&
                      whole_->begin() == epoch * plan.steps_per_epoch();
    if (!fits) whole_.reset();
  }
}

std::vector<v1::VisitCheck> VisitAudit::StepCompleted(const v1::JobPlan& plan, uint64_t step, const RoundSums& sums) {
  Add(step, sums, part_);
  if (whole_.has_value()) Add(step, sums, *whole_);
  const uint64_t version = step + 1;
  if (!IsCheckpointBoundary(plan, version)) return {};
  std::vector<v1::VisitCheck> due;
  const bool epoch_end = IsEpochEnd(plan, version);
  const bool is_whole = whole_.has_value() && part_.begin() == whole_->begin();
  if (!epoch_end || !is_whole) due.push_back(part_);
  if (epoch_end && whole_.has_value()) due.push_back(*whole_);
  part_ = NothingSince(plan, version);
  if (epoch_end) {
    whole_ = part_;
  } else if (whole_.has_value()) {
    at_boundary_[version] = *whole_;
    if (at_boundary_.size() > kBoundariesKept) at_boundary_.erase(at_boundary_.begin());
  }
  for (const v1::VisitCheck& check : due) Show(check);
  return due;
}

std::optional<v1::VisitCheck> VisitAudit::EpochSoFar(uint64_t version) const {
  const auto found = at_boundary_.find(version);
  if (found == at_boundary_.end()) return std::nullopt;
  return found->second;
}

bool VisitAudit::Answered(const v1::VisitCheck& check) {
  const bool equal = check.samples() == check.expected_samples() && check.visits() == check.expected_visits();
  if (!equal) ++mismatches_;
  for (v1::VisitCheck& shown : checks_) {  // if it still is
    const bool same = shown.begin() == check.begin() && shown.end() == check.end() && shown.visits() == check.visits();
    if (same) shown = check;
  }
  return equal;
}

void VisitAudit::Show(const v1::VisitCheck& check) {
  checks_.push_back(check);
  if (checks_.size() > kChecksShown) checks_.pop_front();
}

}  // namespace millrace
