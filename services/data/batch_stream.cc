#include "services/data/batch_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/augmentation.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "services/data/batch_encoding.h"

namespace millrace {

BatchStream::BatchStream(std::string peer, DataMetrics& metrics, std::function<void(BatchStream*)> closed)
    : peer_(std::move(peer)), metrics_(metrics), closed_(std::move(closed)), since_(absl::Now()) {
  metrics_.streams.Increment();
}

BatchStream::~BatchStream() { metrics_.streams.Decrement(); }

void BatchStream::Begin(std::shared_ptr<const Dataset> dataset) {
  MutexLock lock(&mutex_);
  if (ended()) return;
  dataset_ = std::move(dataset);
  since_ = absl::Now();
  StartRead(&read_buffer_);
}

void BatchStream::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!ended()) end_ = status;
  FinishIfDue();
}

void BatchStream::OnReadDone(bool ok) {
  v1::BatchRequest request;
  absl::Status status;
  if (ok && !grpc::SerializationTraits<v1::BatchRequest>::Deserialize(&read_buffer_, &request).ok()) {
    status = absl::InvalidArgumentError("the request is not a millrace.v1.BatchRequest");
  }
  {
    MutexLock lock(&mutex_);
    if (ended()) return;
    if (!ok) {
      all_asked_ = true;
      FinishIfDue();
      return;
    }
    if (status.ok()) status = Accept(request);
    if (!status.ok()) {
      end_ = status;
      FinishIfDue();
      return;
    }
    StartRead(&read_buffer_);
  }
  SendNext();
}

absl::Status BatchStream::Accept(const v1::BatchRequest& request) {
  switch (request.request_case()) {
    case v1::BatchRequest::kPlan:
      return AcceptPlan(request.plan());
    case v1::BatchRequest::kRange:
      if (schedule_ == nullptr) return absl::InvalidArgumentError("the first message must be a plan, not a range");
      MILLRACE_RETURN_IF_ERROR(schedule_->Check(request.range()));
      return queue_.Add(request.range());
    default:
      return absl::InvalidArgumentError("the request holds neither a plan nor a range");
  }
}

absl::Status BatchStream::AcceptPlan(const v1::BatchPlan& plan) {
  if (schedule_ != nullptr) return absl::InvalidArgumentError("a stream has one plan, sent once");
  MILLRACE_ASSIGN_OR_RETURN(BatchSchedule schedule, ScheduleFor(*dataset_, plan));
  if (HasEffect(plan.augmentation())) {
    MILLRACE_ASSIGN_OR_RETURN(Augmenter augmenter,
                              Augmenter::Create(plan.augmentation(), plan.seed(), dataset_->train().shape()));
    augmenter_ = std::make_shared<const Augmenter>(std::move(augmenter));
  }
  schedule_ = std::make_shared<const BatchSchedule>(std::move(schedule));
  plan_ = plan;
  return absl::OkStatus();
}

void BatchStream::SendNext() {
  BatchKey key;
  std::shared_ptr<const Dataset> dataset;
  std::shared_ptr<const BatchSchedule> schedule;
  std::shared_ptr<const Augmenter> augmenter;
  {
    MutexLock lock(&mutex_);
    if (sending_ || ended() || queue_.empty()) return;
    sending_ = true;
    key = queue_.Pop();
    dataset = dataset_;
    schedule = schedule_;
    augmenter = augmenter_;
    const absl::Time now = absl::Now();
    metrics_.credit_wait_seconds.Increment(std::max(0.0, absl::ToDoubleSeconds(now - since_)));
  }
  const BatchSamples samples = schedule->SamplesOf(key);
  write_buffer_ =
      EncodeBatch(key, samples, key.split == v1::SPLIT_TEST ? dataset->test() : dataset->train(), augmenter.get());

  const size_t bytes = write_buffer_.Length();
  DataMetrics::PerSplit& counters = metrics_.of(key.split);
  counters.batches.Increment();
  counters.samples.Increment(static_cast<double>(samples.indices.size()));
  counters.bytes.Increment(static_cast<double>(bytes));

  MutexLock lock(&mutex_);
  if (ended()) {
    sending_ = false;
    FinishIfDue();
    return;
  }
  ++batches_sent_;
  samples_sent_ += samples.indices.size();
  bytes_sent_ += bytes;
  since_ = absl::Now();
  StartWrite(&write_buffer_);
}

void BatchStream::OnWriteDone(bool ok) {
  write_buffer_.Clear();
  {
    MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    metrics_.send_wait_seconds.Increment(std::max(0.0, absl::ToDoubleSeconds(now - since_)));
    since_ = now;
    sending_ = false;
    if (!ok && !ended()) end_ = absl::CancelledError("the client is gone");
    FinishIfDue();
  }
  SendNext();
}

void BatchStream::OnCancel() { End(absl::CancelledError("the client has cancelled")); }

void BatchStream::FinishIfDue() {
  if (sending_ || finished_) return;
  if (!ended() && all_asked_ && queue_.empty()) end_ = absl::OkStatus();
  if (!ended()) return;
  finished_ = true;
  Finish(ToGrpcStatus(*end_));
}

void BatchStream::OnDone() {
  // All other reactions are over. The lock only makes that visible, also to the thread sanitizer.
  { MutexLock lock(&mutex_); }
  const auto closed = closed_;  // outlives the stream
  closed(this);
}

std::string BatchStream::Describe() const {
  MutexLock lock(&mutex_);
  std::string text = absl::StrCat(peer_, ": ");
  if (schedule_ != nullptr) {
    absl::StrAppend(&text, "batch_size ", plan_.batch_size(), ", ", plan_.slots(), " slots, seed ", plan_.seed(),
                    ", augmentation ", FormatAugmentation(plan_.augmentation()), "; ");
  }
  absl::StrAppend(&text, batches_sent_, " batches, ", samples_sent_, " samples, ", bytes_sent_, " bytes sent; ",
                  queue_.outstanding() + (sending_ ? 1 : 0), " batches outstanding; ");
  const std::string since =
      absl::StrCat(" for ", absl::FormatDuration(absl::Trunc(absl::Now() - since_, absl::Milliseconds(1))));
  if (ended()) {
    absl::StrAppend(&text, "ending");
  } else if (dataset_ == nullptr) {
    absl::StrAppend(&text, "waiting", since, " for the dataset to be loaded");
  } else if (sending_) {
    absl::StrAppend(&text, "waiting", since, " for the client to take a batch");
  } else {
    absl::StrAppend(&text, "waiting", since, schedule_ == nullptr ? " for the client's plan" : " for requests");
  }
  return text;
}

}  // namespace millrace
