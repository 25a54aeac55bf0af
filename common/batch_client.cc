#include "common/batch_client.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/dataset_client.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

// A damaged batch is asked for again; this many in a row are no accident.
constexpr int kCorruptInARowMax = 3;

}  // namespace

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
    const std::optional<v1::BatchRange> range = client_.requests_.NextRange();
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
    const absl::Status checked = ok ? CheckBatch(incoming_, client_.options_.image_bytes) : absl::OkStatus();
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
    requests_.AskAgain();
    session.Start();
    while (!session.done()) changed_.Wait(&mutex_);
    session_ = nullptr;
    if (stopping_) return;

    last_error_ = session.status();
    if (absl::IsDataLoss(last_error_)) {
      ++corrupt_in_a_row_;
      LogWarning("damaged batch from the data service", {{"address", options_.address}, {"fault", last_error_}});
    }
    if (absl::IsDataLoss(last_error_) ? corrupt_in_a_row_ >= kCorruptInARowMax : !IsTransientDataError(last_error_)) {
      failure_ = absl::Status(last_error_.code(),
                              absl::StrCat("data service at ", options_.address, ": ", last_error_.message()));
      changed_.SignalAll();
      return;
    }
    if (answered_) {
      backoff.Reset();
      LogWarning("lost the data service; asking again",
                 {{"address", options_.address}, {"reason", last_error_}, {"batches", requests_.missing()}});
    }
    const absl::Time retry = absl::Now() + backoff.Next();
    while (!stopping_ && absl::Now() < retry) changed_.WaitWithTimeout(&mutex_, retry - absl::Now());
  }
}

void BatchClient::Deliver(v1::Batch batch) {
  answered_ = true;
  corrupt_in_a_row_ = 0;
  if (requests_.Deliver(std::move(batch))) changed_.SignalAll();
}

absl::Status BatchClient::Request(std::span<const BatchKey> keys) {
  MutexLock lock(&mutex_);
  if (absl::Status status = requests_.Add(keys, absl::Now()); !status.ok()) return status;
  if (session_ != nullptr) session_->WriteNext();
  return absl::OkStatus();
}

absl::StatusOr<v1::Batch> BatchClient::Get(const BatchKey& key, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (true) {
    if (!requests_.contains(key)) {
      return absl::FailedPreconditionError(absl::StrCat(key.ToString(), " has not been asked for"));
    }
    if (std::optional<v1::Batch> batch = requests_.Take(key); batch.has_value()) return *std::move(batch);
    if (!failure_.ok()) return failure_;
    const absl::Time now = absl::Now();
    if (now >= deadline) {
      const absl::Duration waited = absl::Trunc(now - requests_.requested(key), absl::Milliseconds(100));
      return absl::DeadlineExceededError(absl::StrCat(key.ToString(), " from ", DescribeService(), ", asked for ",
                                                      absl::FormatDuration(waited), " ago"));
    }
    changed_.WaitWithTimeout(&mutex_, deadline - now);
  }
}

void BatchClient::Forget(std::span<const BatchKey> keys) {
  MutexLock lock(&mutex_);
  requests_.Forget(keys);
}

std::string BatchClient::DescribeService() const {
  const std::string service = absl::StrCat("the data service at ", options_.address);
  if (session_ != nullptr && (answered_ || last_error_.ok())) return service;
  if (last_error_.ok()) return absl::StrCat(service, " (not connected: it ended the stream)");
  return absl::StrCat(service, " (not connected: ", last_error_.message(), ")");
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
