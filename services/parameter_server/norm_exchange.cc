#include "services/parameter_server/norm_exchange.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace millrace {

void NormExchange::Receive(uint32_t /*shard*/, uint64_t /*step*/, const SquaredNorm& /*part*/, Answer answer) {
  answer(
      absl::FailedPreconditionError("the norms of a step's gradient meet at shard 0, and only if the job clips them"));
}

void NormRendezvous::Sum(uint64_t step, const SquaredNorm& part, Done done) {
  Receive(0, step, part, [done = std::move(done)](const absl::StatusOr<SquaredNorm>& total) {
    if (total.ok()) done(*total);
  });
}

void NormRendezvous::Receive(uint32_t shard, uint64_t step, const SquaredNorm& part, Answer answer) {
  std::vector<Answer> answers;
  absl::StatusOr<SquaredNorm> result = absl::AbortedError("the shard asked again");
  {
    MutexLock lock(&mutex_);
    if (cancelled_) {
      answers.push_back(std::move(answer));
      result = absl::CancelledError("the shard does not serve this run any more");
    } else if (last_.has_value() && last_->first == step) {
      answers.push_back(std::move(answer));
      result = last_->second;
    } else if (shard >= num_shards_ || (last_.has_value() && step != last_->first + 1) ||
               (!parts_.empty() && step != step_)) {
      answers.push_back(std::move(answer));
      result = absl::FailedPreconditionError(absl::StrCat("the norm of shard ", shard, " for step ", step,
                                                          " has no place among ", num_shards_, " shards at step ",
                                                          last_.has_value() ? last_->first + 1 : step_));
    } else {
      step_ = step;
      const auto [known, added] = parts_.try_emplace(shard, Part{part, answer});
      if (!added && known->second.norm != part) {
        answers.push_back(std::move(answer));
        result = absl::DataLossError(
            absl::StrCat("the norm of shard ", shard, " for step ", step, " differs from the one it sent before"));
      } else if (!added) {
        answers.push_back(std::exchange(known->second.answer, std::move(answer)));
      } else if (parts_.size() == num_shards_) {
        SquaredNorm total;
        for (auto& [number, other] : parts_) total.Add(other.norm);
        // Shard 0 last: its answer is called to apply the step, for which the others should not wait.
        for (auto other = parts_.rbegin(); other != parts_.rend(); ++other) {
          answers.push_back(std::move(other->second.answer));
        }
        parts_.clear();
        last_ = {step, total};
        result = total;
      }
    }
  }
  for (const Answer& each : answers) each(result);
}

void NormRendezvous::Cancel() {
  std::map<uint32_t, Part> parts;
  {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    parts = std::exchange(parts_, {});
  }
  for (const auto& [shard, part] : parts) {
    part.answer(absl::CancelledError("the shard does not serve this run any more"));
  }
}

std::string NormRendezvous::WaitingFor() const {
  MutexLock lock(&mutex_);
  if (parts_.empty()) return "";
  for (uint32_t shard = 0; shard < num_shards_; ++shard) {
    if (!parts_.contains(shard)) return absl::StrCat("the norm of shard ", shard);
  }
  return "";
}

}  // namespace millrace
