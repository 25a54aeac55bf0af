#include "common/batch_client.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

// One attempt at a unary call. The service may hold it until its dataset is loaded, and a caller that is to stop waits
// for it.
constexpr absl::Duration kAttemptTimeout = absl::Seconds(2);
// A damaged batch is asked for again; this many in a row are no accident.
constexpr int kCorruptInARowMax = 3;

// The service may be back, or reachable, the next time.
bool IsTransient(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return true;
    default:
      return false;
  }
}

BatchKey KeyOf(const v1::Batch& batch) { return {batch.split(), batch.epoch(), batch.step(), batch.slot()}; }

}  // namespace

absl::StatusOr<v1::DatasetInfo> DescribeDataset(const std::string& address, const v1::DescribeDatasetRequest& request,
                                                absl::Duration timeout,
                                                absl::FunctionRef<bool(std::string_view, absl::Duration)> wait) {
  const absl::Time deadline = absl::Now() + timeout;
  const auto stub = v1::DataService::NewStub(MakeChannel(address));
  Backoff backoff;
  while (true) {
    grpc::ClientContext context;
    SetDeadline(context, std::min(kAttemptTimeout, deadline - absl::Now()));
    v1::DatasetInfo info;
    const absl::Status status = FromGrpcStatus(stub->DescribeDataset(&context, request, &info));
    if (status.ok()) return info;
    if (!IsTransient(status)) {
      return absl::Status(status.code(), absl::StrCat("data service at ", address, ": ", status.message()));
    }
    const std::string what = absl::StrCat("the data service at ", address, " (", status.message(), ")");
    const absl::Duration time = backoff.Next();
    if (absl::Now() + time >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("waited ", absl::FormatDuration(timeout), " for ", what));
    }
    if (!wait(what, time)) return absl::CancelledError(absl::StrCat("gave up waiting for ", what));
  }
}

v1::BatchPlan BatchPlanOf(const v1::JobPlan& plan) {
  v1::BatchPlan batches;
  batches.set_fingerprint(plan.dataset().fingerprint());
  batches.set_seed(plan.spec().seed());
  batches.set_validation_count(plan.spec().validation_count());
  batches.set_batch_size(plan.spec().batch_size());
  batches.set_slots(plan.spec().slots());
  batches.set_evaluation_batch_size(plan.spec().evaluation_batch_size());
  if (plan.spec().has_augmentation()) *batches.mutable_augmentation() = plan.spec().augmentation();
  return batches;
}

// One StreamBatches call. Its reactions take the client's mutex; operations are started with it held, and none after a
// read has failed, so that the call cannot end while one is being started. Destroyed after OnDone.
class BatchClient::Session final : public grpc::ClientBidiReactor<v1::BatchRequest, v1::Batch> {
 public:
  explicit Session(BatchClient& client) : client_(client), stub_(v1::DataService::NewStub(client.channel_)) {}

  // The client calls these with its mutex held. The analysis cannot see that client_.mutex_ is that one.
  void Start() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    stub_->async()->StreamBatches(&context_, this);
    *request_.mutable_plan() = client_.options_.plan;
    writing_ = true;
    StartWrite(&request_);
    StartRead(&incoming_);
    StartCall();
  }

  // Writes the next request if there is one and none is being written.
  void WriteNext() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (writing_ || closed_) return;
    const std::optional<v1::BatchRange> range = client_.NextRange();
    if (!range.has_value()) return;
    *request_.mutable_range() = *range;
    writing_ = true;
    StartWrite(&request_);
  }

  void Cancel() { context_.TryCancel(); }

  bool done() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return done_; }
  const absl::Status& status() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return status_; }

 private:
  void OnReadDone(bool ok) override {
    const absl::Status checked = ok ? client_.Check(incoming_) : absl::OkStatus();
    MutexLock lock(&client_.mutex_);
    if (!ok) {
      closed_ = true;
      return;
    }
    if (!checked.ok()) {
      // Whatever damaged it may have damaged more: the stream is not to be trusted.
      status_ = checked;
      closed_ = true;
      Cancel();
      return;
    }
    client_.Deliver(std::move(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&client_.mutex_);
    writing_ = false;
    if (ok) WriteNext();
  }

  void OnDone(const grpc::Status& status) override {
    MutexLock lock(&client_.mutex_);
    if (status_.ok()) status_ = FromGrpcStatus(status);
    done_ = true;
    client_.changed_.SignalAll();
  }

  BatchClient& client_;
  const std::unique_ptr<v1::DataService::Stub> stub_;
  grpc::ClientContext context_;
  v1::BatchRequest request_;  // belongs to the write in progress
  v1::Batch incoming_;        // belongs to the read in progress
  bool writing_ ABSL_GUARDED_BY(client_.mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(client_.mutex_) = false;  // no operation may be started
  bool done_ ABSL_GUARDED_BY(client_.mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(client_.mutex_);  // why it ended
};

BatchClient::BatchClient(Options options)
    : options_(std::move(options)), channel_(MakeChannel(options_.address)), thread_([this] { Run(); }) {}

BatchClient::~BatchClient() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    if (session_ != nullptr) session_->Cancel();
    changed_.SignalAll();
  }
  thread_.join();
}

void BatchClient::Run() {
  Backoff backoff;
  MutexLock lock(&mutex_);
  while (!stopping_) {
    Session session(*this);
    session_ = &session;
    answered_ = false;
    in_flight_ = 0;
    AskAgain();
    session.Start();
    while (!session.done()) changed_.Wait(&mutex_);
    session_ = nullptr;
    if (stopping_) return;

    last_error_ = session.status();
    if (absl::IsDataLoss(last_error_)) {
      ++corrupt_in_a_row_;
      LogWarning("damaged batch from the data service", {{"address", options_.address}, {"fault", last_error_}});
    }
    if (absl::IsDataLoss(last_error_) ? corrupt_in_a_row_ >= kCorruptInARowMax : !IsTransient(last_error_)) {
      failure_ = absl::Status(last_error_.code(),
                              absl::StrCat("data service at ", options_.address, ": ", last_error_.message()));
      changed_.SignalAll();
      return;
    }
    if (answered_) {
      backoff.Reset();
      LogWarning("lost the data service; asking again",
                 {{"address", options_.address}, {"reason", last_error_}, {"batches", to_ask_.size() + in_flight_}});
    }
    const absl::Time retry = absl::Now() + backoff.Next();
    while (!stopping_ && absl::Now() < retry) changed_.WaitWithTimeout(&mutex_, retry - absl::Now());
  }
}

absl::Status BatchClient::Check(const v1::Batch& batch) const {
  const auto fault = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(KeyOf(batch).ToString(), ": ", what));
  };
  if (batch.labels().size() != batch.samples()) {
    return fault(absl::StrCat(batch.samples(), " samples with ", batch.labels().size(), " labels"));
  }
  if (options_.image_bytes != 0 && batch.images().size() != batch.samples() * options_.image_bytes) {
    return fault(absl::StrCat(batch.samples(), " images of ", options_.image_bytes, " bytes in ", batch.images().size(),
                              " bytes"));
  }
  if (batch.samples() > batch.step_samples()) {
    return fault(absl::StrCat(batch.samples(), " samples in a step of ", batch.step_samples()));
  }
  Checksum checksum;
  checksum.Update(batch.images());
  checksum.Update(batch.labels());
  if (checksum.Value() != batch.checksum()) return fault("its checksum is wrong");
  return absl::OkStatus();
}

void BatchClient::Deliver(v1::Batch batch) {
  answered_ = true;
  corrupt_in_a_row_ = 0;
  if (in_flight_ > 0) --in_flight_;
  const auto found = entries_.find(KeyOf(batch));
  if (found == entries_.end() || found->second.state == State::kArrived) return;  // forgotten meanwhile
  if (found->second.state == State::kToAsk) {
    // Forgotten and requested again while its first answer was on the way.
    std::erase(to_ask_, found->first);
  }
  found->second.state = State::kArrived;
  found->second.batch = std::move(batch);
  changed_.SignalAll();
}

void BatchClient::AskAgain() {
  std::vector<std::pair<uint64_t, BatchKey>> missing;
  for (auto& [key, entry] : entries_) {
    if (entry.state == State::kArrived) continue;
    entry.state = State::kToAsk;
    missing.emplace_back(entry.sequence, key);
  }
  std::ranges::sort(missing);
  to_ask_.clear();
  for (const auto& [_, key] : missing) to_ask_.push_back(key);
}

std::optional<v1::BatchRange> BatchClient::NextRange() {
  if (to_ask_.empty() || in_flight_ >= kOutstandingBatchesMax) return std::nullopt;
  const v1::BatchRange range = TakeRange(to_ask_, kOutstandingBatchesMax - in_flight_);
  for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
    for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
      entries_.at({range.split(), range.epoch(), step, slot}).state = State::kAsked;
      ++in_flight_;
    }
  }
  return range;
}

absl::Status BatchClient::Request(std::span<const BatchKey> keys) {
  MutexLock lock(&mutex_);
  size_t added = 0;
  for (const BatchKey& key : keys) added += entries_.contains(key) ? 0 : 1;
  if (entries_.size() + added > kKeysMax) {
    return absl::ResourceExhaustedError(absl::StrCat(entries_.size(), " batches are asked for already; ", added,
                                                     " more are over the limit of ", kKeysMax));
  }
  for (const BatchKey& key : keys) {
    const auto [entry, inserted] = entries_.try_emplace(key);
    if (!inserted) continue;
    entry->second.sequence = next_sequence_++;
    entry->second.requested = absl::Now();
    to_ask_.push_back(key);
  }
  if (session_ != nullptr) session_->WriteNext();
  return absl::OkStatus();
}

absl::StatusOr<v1::Batch> BatchClient::Get(const BatchKey& key, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (true) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) {
      return absl::FailedPreconditionError(absl::StrCat(key.ToString(), " has not been asked for"));
    }
    if (found->second.state == State::kArrived) {
      v1::Batch batch = std::move(found->second.batch);
      entries_.erase(found);
      return batch;
    }
    if (!failure_.ok()) return failure_;
    const absl::Time now = absl::Now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          key.ToString(), " from ", DescribeService(), ", asked for ",
          absl::FormatDuration(absl::Trunc(now - found->second.requested, absl::Milliseconds(100))), " ago"));
    }
    changed_.WaitWithTimeout(&mutex_, deadline - now);
  }
}

void BatchClient::Forget(std::span<const BatchKey> keys) {
  MutexLock lock(&mutex_);
  for (const BatchKey& key : keys) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) continue;
    if (found->second.state == State::kToAsk) std::erase(to_ask_, key);
    entries_.erase(found);
  }
}

std::string BatchClient::DescribeService() const {
  const std::string service = absl::StrCat("the data service at ", options_.address);
  if (session_ != nullptr && (answered_ || last_error_.ok())) return service;
  if (last_error_.ok()) return absl::StrCat(service, " (not connected: it ended the stream)");
  return absl::StrCat(service, " (not connected: ", last_error_.message(), ")");
}

v1::BatchRange TakeRange(std::deque<BatchKey>& keys, uint64_t batches_max) {
  const BatchKey first = keys.front();
  uint64_t slots = 0;
  while (slots < keys.size() && slots < batches_max &&
         keys[slots] == BatchKey{first.split, first.epoch, first.step, first.slot + static_cast<uint32_t>(slots)}) {
    ++slots;
  }
  uint64_t count = slots;
  while (count < keys.size() && count < batches_max / slots * slots &&
         keys[count] == BatchKey{first.split, first.epoch, first.step + count / slots,
                                 first.slot + static_cast<uint32_t>(count % slots)}) {
    ++count;
  }
  const uint64_t steps = count / slots;
  keys.erase(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(steps * slots));

  v1::BatchRange range;
  range.set_split(first.split);
  range.set_epoch(first.epoch);
  range.set_step(first.step);
  range.set_steps(steps);
  range.set_slot_begin(first.slot);
  range.set_slot_end(first.slot + static_cast<uint32_t>(slots));
  return range;
}

namespace {

// BatchClient::Get in slices short enough for a person who pressed Ctrl-C.
absl::StatusOr<v1::Batch> GetUnlessStopped(BatchClient& client, const BatchKey& key, absl::Duration timeout,
                                           const std::stop_token& stop) {
  constexpr absl::Duration kSlice = absl::Milliseconds(200);
  while (!stop.stop_requested()) {
    absl::StatusOr<v1::Batch> batch = client.Get(key, std::min(timeout, kSlice));
    timeout -= kSlice;
    if (!absl::IsDeadlineExceeded(batch.status()) || timeout <= absl::ZeroDuration()) return batch;
  }
  return absl::CancelledError("interrupted");
}

}  // namespace

absl::Status ForEachBatch(BatchClient& client, v1::Split split, uint64_t steps, absl::Duration timeout,
                          const std::stop_token& stop, absl::FunctionRef<absl::Status(const v1::Batch&)> use) {
  constexpr uint64_t kAhead = 8;
  uint64_t asked = 0;
  const absl::Cleanup forget = [&] {
    for (uint64_t step = 0; step < asked; ++step) {
      const BatchKey key{split, 0, step, 0};
      client.Forget({&key, 1});
    }
  };
  for (uint64_t step = 0; step < steps; ++step) {
    for (; asked < std::min(steps, step + kAhead); ++asked) {
      const BatchKey key{split, 0, asked, 0};
      MILLRACE_RETURN_IF_ERROR(client.Request({&key, 1}));
    }
    MILLRACE_ASSIGN_OR_RETURN(const v1::Batch batch, GetUnlessStopped(client, {split, 0, step, 0}, timeout, stop));
    MILLRACE_RETURN_IF_ERROR(use(batch));
  }
  return absl::OkStatus();
}

}  // namespace millrace
