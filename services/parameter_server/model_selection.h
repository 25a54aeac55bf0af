// Which validated version is the best, and when a job that gets no better ends: pure functions of the validation
// history, so the same for every shape of the cluster, and after a restart.
#pragma once

#include <span>

#include "millrace/v1/job.pb.h"

namespace millrace {

// The best version by spec.best_by, the first of equals; null if the history has no finite loss. Points into `history`,
// one entry per completed epoch, oldest first.
const v1::Evaluation* BestOf(const v1::JobSpec& spec, std::span<const v1::Evaluation> history);

// True if the job ends with the last entry of `history`: its early_stopping.patience epochs in a row, up to that one,
// were not better than the best before them by more than min_delta. As Keras' EarlyStopping counts: what is better by
// less is no improvement, and leaves the mark to beat where it was.
bool StopsAfter(const v1::JobSpec& spec, std::span<const v1::Evaluation> history);

}  // namespace millrace
