#include "services/model/batcher.h"

#include <algorithm>
#include <cstddef>

namespace millrace {
namespace {

constexpr absl::Duration kRetryAfterMin = absl::Milliseconds(1);

// Of the time until its deadline, what a request must be predicted to have left at least and at most: half of it for
// rows that join its batch later and for estimates that are too low, half for its way to us, which its deadline does
// not count, and back. Without it, under overload, all that is admitted ends just at its deadline. How long the way is,
// on busy processors, only late answers tell.
constexpr double kMarginShare = 0.125;
constexpr double kMarginShareMax = 0.75;
constexpr absl::Duration kLateMarginStep = absl::Milliseconds(2);
constexpr absl::Duration kLateMarginMax = absl::Milliseconds(100);
// To a request with more time, what is learnt is little beside its eighth, and how it ends says little about it.
constexpr absl::Duration kTellingTimeMax = absl::Seconds(1);
constexpr double kLateShare = 0.005;

Batcher::Refusal Refuse(Batcher::Refusal::Reason reason, absl::Duration retry_after) {
  return {.reason = reason, .retry_after = std::max(retry_after, kRetryAfterMin)};
}

}  // namespace

std::optional<Batcher::Refusal> Batcher::Admit(const Request& request, absl::Time now) {
  if (request.deadline <= now) return Refuse(Refusal::Reason::kLate, absl::ZeroDuration());
  if (const std::optional<Refusal> over = OverLimit(request, now)) return over;
  const bool met_free_executor = idle();
  const absl::Duration margin = MarginOf(request, now);
  if (!met_free_executor) {
    const absl::Time due = request.deadline - margin;
    const absl::Time finish = PredictFinish(request, now);
    if (finish > due) return Refuse(Refusal::Reason::kLate, finish - due);
  }
  const Key key(request.deadline, arrivals_++);
  Waiting waiting{.request = request,
                  .latest = request.deadline - margin / 2,
                  .next_row = 0,
                  .met_free_executor = met_free_executor};
  waiting_rows_ += waiting.rows();
  waiting_bytes_ += waiting.bytes();
  lanes_[request.lane].emplace(key, waiting);
  const bool telling = !met_free_executor && request.deadline - now <= kTellingTimeMax;
  open_[request.id] = {.lane = request.lane, .key = key, .telling = telling};
  return std::nullopt;
}

absl::Duration Batcher::MarginOf(const Request& request, absl::Time now) const {
  const absl::Duration time = request.deadline - now;
  return std::min(time * kMarginShare + late_margin_, time * kMarginShareMax);
}

void Batcher::ObserveEnd(Id id, bool late) {
  if (const auto open = open_.find(id); open != open_.end()) Learn(open->second, late);
}

void Batcher::Learn(const Place& place, bool late) {
  if (!place.telling) return;
  late_margin_ += kLateMarginStep * ((late ? 1 : 0) - kLateShare);
  late_margin_ = std::clamp(late_margin_, absl::ZeroDuration(), kLateMarginMax);
}

std::optional<Batcher::Refusal> Batcher::OverLimit(const Request& request, absl::Time now) const {
  absl::Time freed = now;
  if (!running_.empty()) {
    freed = std::min_element(running_.begin(), running_.end(), [](const auto& a, const auto& b) {
              return a.second < b.second;
            })->second;
  }
  if (open_.size() >= limits_.requests) return Refuse(Refusal::Reason::kRequests, freed - now);
  if (waiting_rows_ + request.rows > limits_.waiting_rows) {
    return Refuse(Refusal::Reason::kRows, freed - now + TimeForWaiting());
  }
  if (waiting_bytes_ + request.rows * request.row_bytes > limits_.waiting_bytes) {
    return Refuse(Refusal::Reason::kBytes, freed - now + TimeForWaiting());
  }
  return std::nullopt;
}

absl::Duration Batcher::TimeForWaiting() const {
  absl::Duration time;
  for (const auto& [lane, queue] : lanes_) {
    uint64_t rows = 0;
    for (const auto& [key, waiting] : queue) rows += waiting.rows();
    time += lane->time.Estimate(limits_.batch_rows) * (rows / limits_.batch_rows);
    if (rows % limits_.batch_rows != 0) time += lane->time.Estimate(static_cast<uint32_t>(rows % limits_.batch_rows));
  }
  return time / limits_.executors;
}

absl::Time Batcher::PredictFinish(const Request& request, absl::Time now) const {
  // The batches before its last one are taken to be full. If they are not, it was too low, and what it let in too much
  // expires in the queue, uncomputed.
  uint64_t rows = request.rows;  // of its own lane up to and with its last row
  absl::Duration others;
  for (const auto& [lane, queue] : lanes_) {
    uint64_t ahead = 0;
    for (const auto& [key, waiting] : queue) {
      if (key.first > request.deadline) break;
      ahead += waiting.rows();
    }
    if (lane == request.lane) {
      rows += ahead;
    } else if (ahead > 0) {
      others += lane->time.Estimate(limits_.batch_rows) * ahead / limits_.batch_rows;
    }
  }
  absl::Time start = now;
  if (running_.size() >= static_cast<size_t>(limits_.executors)) {
    start = absl::InfiniteFuture();
    for (const auto& [number, end] : running_) start = std::min(start, end);
    start = std::max(start, now);
  }
  const uint64_t full = (rows - 1) / limits_.batch_rows;
  const auto last = static_cast<uint32_t>(rows - full * limits_.batch_rows);
  const ServiceTime& time = request.lane->time;
  return start + others / limits_.executors + time.Estimate(limits_.batch_rows) * (full / limits_.executors) +
         time.Estimate(last);
}

Batcher::Decision Batcher::Next(absl::Time now) {
  Decision decision;
  if (!HasWork()) return decision;
  DropExpired(now, decision.expired);
  Lane* lane = nullptr;
  Queue* queue = EarliestQueue(&lane);
  if (queue == nullptr) return decision;
  decision.batch = Fill(lane, *queue, now);
  return decision;
}

void Batcher::DropExpired(absl::Time now, std::vector<Id>& expired) {
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    Queue& queue = lane->second;
    while (!queue.empty() && queue.begin()->first.first <= now) {
      expired.push_back(queue.begin()->second.request.id);
      const auto open = open_.find(expired.back());
      Learn(open->second, true);
      open_.erase(open);
      Forget(queue.begin()->second);
      queue.erase(queue.begin());
    }
    lane = queue.empty() ? lanes_.erase(lane) : std::next(lane);
  }
}

Batcher::Queue* Batcher::EarliestQueue(Lane** lane) {
  Queue* earliest = nullptr;
  for (auto& [candidate, queue] : lanes_) {
    if (earliest != nullptr && earliest->begin()->first < queue.begin()->first) continue;
    earliest = &queue;
    *lane = candidate;
  }
  return earliest;
}

Batcher::Batch Batcher::Fill(Lane* lane, Queue& queue, absl::Time now) {
  Batch batch{.number = batches_++, .lane = lane, .slices = {}};
  batch.release = queue.begin()->second.met_free_executor ? Release::kIdleExecutor : Release::kFreedExecutor;
  const absl::Time latest = queue.begin()->second.latest;
  const auto late = [&](uint32_t rows) { return now + lane->time.Estimate(rows) > latest; };
  uint64_t bytes = 0;
  while (!queue.empty()) {
    Waiting& waiting = queue.begin()->second;
    const uint64_t row_bytes = std::max<uint64_t>(waiting.request.row_bytes, 1);
    uint64_t fit = bytes < limits_.batch_bytes ? (limits_.batch_bytes - bytes) / row_bytes : 0;
    if (batch.rows == 0) fit = std::max<uint64_t>(fit, 1);
    const uint32_t room = limits_.batch_rows - batch.rows;
    auto rows = static_cast<uint32_t>(std::min<uint64_t>({waiting.rows(), fit, room}));
    const bool spare = batch.rows > 0 && !late(batch.rows);
    const uint32_t wanted = rows;
    while (spare && rows > 0 && late(batch.rows + rows)) --rows;
    if (rows > 0) {
      batch.slices.push_back({.id = waiting.request.id, .first_row = waiting.next_row, .rows = rows});
      batch.rows += rows;
      bytes += rows * waiting.request.row_bytes;
      waiting_rows_ -= rows;
      waiting_bytes_ -= rows * waiting.request.row_bytes;
      waiting.next_row += rows;
    }
    if (waiting.rows() > 0) {
      batch.release = fit < room ? Release::kBytesLimit : Release::kRowsLimit;
      if (rows < wanted) batch.release = Release::kDeadline;
      break;
    }
    open_[waiting.request.id].lane = nullptr;
    queue.erase(queue.begin());
  }
  if (queue.empty()) lanes_.erase(lane);
  running_[batch.number] = now + lane->time.Estimate(batch.rows);
  return batch;
}

void Batcher::Finish(const Batch& batch) { running_.erase(batch.number); }

void Batcher::Close(Id id) {
  const auto open = open_.find(id);
  if (open == open_.end()) return;
  const Place place = open->second;
  open_.erase(open);
  if (place.lane == nullptr) return;
  const auto found = lanes_.find(place.lane);
  const auto waiting = found->second.find(place.key);
  Forget(waiting->second);
  found->second.erase(waiting);
  if (found->second.empty()) lanes_.erase(found);
}

void Batcher::Forget(const Waiting& waiting) {
  waiting_rows_ -= waiting.rows();
  waiting_bytes_ -= waiting.bytes();
}

std::string_view Name(Batcher::Refusal::Reason reason) {
  switch (reason) {
    case Batcher::Refusal::Reason::kRequests:
      return "queue_requests";
    case Batcher::Refusal::Reason::kRows:
      return "queue_rows";
    case Batcher::Refusal::Reason::kBytes:
      return "queue_bytes";
    case Batcher::Refusal::Reason::kLate:
      return "late";
  }
  return "unknown";
}

std::string_view Name(Batcher::Release release) {
  switch (release) {
    case Batcher::Release::kIdleExecutor:
      return "idle_executor";
    case Batcher::Release::kFreedExecutor:
      return "freed_executor";
    case Batcher::Release::kRowsLimit:
      return "rows_limit";
    case Batcher::Release::kBytesLimit:
      return "bytes_limit";
    case Batcher::Release::kDeadline:
      return "deadline";
  }
  return "unknown";
}

}  // namespace millrace
