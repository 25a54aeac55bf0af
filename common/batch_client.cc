#include "common/batch_client.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/dataset_client.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "millrace/v1/data.grpc.pb.h"
#include "prometheus/counter.h"

namespace millrace {
namespace {

// A damaged batch is asked for again; this many in a row are no accident.
constexpr int kDamagedInARowMax = 3;
// How often the client of several replicas looks whether it has to leave one.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(50);
constexpr absl::Duration kLookTimeout = absl::Seconds(1);

ReplicaChoice::Options ChoiceOf(const BatchClient::Options& options) {
  ReplicaChoice::Options choice = options.choice;
  choice.replicas = options.addresses.size();
  return choice;
}

}  // namespace

// One StreamBatches call. Its reactions take the client's mutex; operations are started with it held, and none after a
// read has failed, so that the call cannot end while one is being started. Destroyed after OnDone.
class BatchClient::Session final : public grpc::ClientBidiReactor<v1::BatchRequest, v1::Batch> {
 public:
  Session(BatchClient& client, const std::shared_ptr<grpc::Channel>& channel)
      : client_(client), stub_(v1::DataService::NewStub(channel)) {}

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

BatchClient::BatchClient(Options options) : options_(std::move(options)), choice_(ChoiceOf(options_)) {
  {
    MutexLock lock(&mutex_);
    for (const std::string& address : options_.addresses)
      replicas_.push_back({address, MakeChannel(address, options_.credentials)});
  }
  thread_ = std::thread([this] { Run(); });
}

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
  MutexLock lock(&mutex_);
  while (!stopping_) {
    Session session(*this, replicas_[choice_.current()].channel);
    session_ = &session;
    answered_ = false;
    requests_.AskAgain();
    session.Start();
    const absl::Status left = Watch(session);
    session_ = nullptr;
    if (stopping_) return;
    if (absl::IsCancelled(left)) {
      choice_.Looked(/*is_there=*/true, absl::Now());
      LogInfo("the data service is there again, going back to it", {{"address", options_.addresses[0]}});
      continue;
    }
    const absl::Time retry = absl::Now() + Lose(left.ok() ? session.status() : left, /*silent=*/!left.ok());
    if (!failure_.ok()) return;
    while (!stopping_ && absl::Now() < retry) changed_.WaitWithTimeout(&mutex_, retry - absl::Now());
  }
}

absl::Status BatchClient::Watch(Session& session) {
  absl::Status left;
  std::unique_ptr<IdentifyCall> look;
  while (!session.done()) {
    if (replicas_.size() == 1 || !left.ok()) {
      changed_.Wait(&mutex_);
      continue;
    }
    changed_.WaitWithTimeout(&mutex_, kWatchInterval);
    if (session.done() || stopping_) continue;
    if (requests_.in_flight() > 0 && absl::Now() - heard_ > choice_.patience()) {
      left = absl::DeadlineExceededError(
          absl::StrCat("it brought nothing for ", absl::FormatDuration(choice_.patience())));
    } else if (FirstIsBack(look)) {
      left = absl::CancelledError("the first one is back");
    }
    if (!left.ok()) session.Cancel();
  }
  return left;
}

bool BatchClient::FirstIsBack(std::unique_ptr<IdentifyCall>& look) {
  if (look == nullptr) {
    if (absl::Now() >= choice_.look_at())
      look = std::make_unique<IdentifyCall>(MakeChannel(options_.addresses[0], options_.credentials), kLookTimeout);
    return false;
  }
  if (!look->done()) return false;
  const absl::StatusOr<v1::DatasetIdentity> identity = look->Wait();
  look.reset();
  const std::string& expected = options_.plan.fingerprint();
  if (identity.ok() && (expected.empty() || identity->fingerprint() == expected)) return true;
  choice_.Looked(/*is_there=*/false, absl::Now());
  return false;
}

absl::Duration BatchClient::Lose(const absl::Status& why, bool silent) {
  Replica& replica = replicas_[choice_.current()];
  const bool damaged = absl::IsDataLoss(why);
  if (damaged) {
    ++replica.damaged_in_a_row;
    LogWarning("damaged batch from the data service", {{"address", replica.address}, {"fault", why}});
  }
  const bool refuses = damaged ? replica.damaged_in_a_row >= kDamagedInARowMax : !IsTransientDataError(why);
  const bool news = replica.error != why;
  replica.error = why;
  using Loss = ReplicaChoice::Loss;
  const absl::Duration wait =
      choice_.Lost(refuses ? Loss::kRefused : (silent ? Loss::kSilent : Loss::kBroken), absl::Now());
  if (choice_.all_refuse()) {
    std::vector<std::string> refusals;
    for (const Replica& each : replicas_) {
      refusals.push_back(absl::StrCat("data service at ", each.address, ": ", each.error.message()));
    }
    failure_ = absl::Status(why.code(), absl::StrJoin(refusals, "; "));
    changed_.SignalAll();
  } else if (refuses && news) {
    LogError("A DATA SERVICE REFUSES, the others are asked", {{"address", replica.address}, {"reason", why}});
  } else if (answered_ || (silent && news)) {
    LogWarning("lost the data service; asking again", {{"address", replica.address},
                                                       {"reason", why},
                                                       {"batches", requests_.missing()},
                                                       {"next", replicas_[choice_.current()].address}});
  }
  if ((answered_ || silent) && options_.breaks != nullptr) options_.breaks->Increment();
  return wait;
}

std::optional<v1::BatchRange> BatchClient::NextRange() {
  if (requests_.in_flight() == 0) heard_ = absl::Now();
  return requests_.NextRange();
}

void BatchClient::Deliver(v1::Batch batch) {
  answered_ = true;
  heard_ = absl::Now();
  choice_.Answered();
  Replica& replica = replicas_[choice_.current()];
  replica.error = absl::OkStatus();
  replica.damaged_in_a_row = 0;
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
  if (replicas_.size() > 1 && choice_.none_answers()) {
    std::vector<absl::Status> reasons;
    for (const Replica& replica : replicas_) reasons.push_back(replica.error);
    return DescribeSilence(options_.addresses, reasons);
  }
  const Replica& replica = replicas_[choice_.current()];
  const std::string service = absl::StrCat("the data service at ", replica.address);
  if (session_ != nullptr && (answered_ || replica.error.ok())) return service;
  if (replica.error.ok()) return absl::StrCat(service, " (not connected: it ended the stream)");
  return absl::StrCat(service, " (not connected: ", replica.error.message(), ")");
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
