// The coordinator's status of a job as text for people: /statusz, `millrace status` and `millrace train` say the same
// things in the same words. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Time until the last step at the pace of this run so far, evaluation included; nothing before the first step.
std::optional<absl::Duration> EstimateRemaining(const v1::JobStatus& status);

// "epoch 3/10  step 1,123/4,220  loss 0.0512  12,345 images/s  ETA 0:42", or what the job does instead of training.
std::string FormatProgress(const v1::JobStatus& status);

// The same while the job waits: "epoch 3/10  step 1,123/4,220  waiting for slot 5, leased to worker-2".
std::string FormatWait(const v1::JobStatus& status);

// "epoch 3/10 done at step 1,266: validation loss 0.0571, accuracy 98.32 %"; no accuracy of what does not classify.
std::string FormatEvaluation(const v1::Evaluation& evaluation, uint32_t epochs);

// "stopped early: the last 3 epochs were not better than those before; the best is epoch 4 (version 1,688)"
std::string FormatEarlyStop(const v1::JobStatus& status);

// Whether each sample was trained once, by the newest check: "epoch 3: 55,000 samples, each once (digest
// 0123456789abcdef)". Empty before the first.
std::string FormatVisits(const v1::JobStatus& status);

// A table of who takes part, who does what and waits for what, and the last few evaluations. `shards` holds, by shard
// number, what is known of a shard besides ("version 812, waiting for step 812: slots 5-7"), where anything is.
std::string FormatJobStatus(const v1::JobStatus& status, const std::map<uint32_t, std::string>& shards = {});

}  // namespace millrace
