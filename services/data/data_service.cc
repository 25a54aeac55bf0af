#include "services/data/data_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "services/data/batch_stream.h"
#include "services/data/batches.h"
#include "services/data/visits.h"

namespace millrace {
namespace {

absl::StatusOr<v1::DatasetIdentity> Identify(const Dataset& dataset, const v1::IdentifyDatasetRequest& /*request*/) {
  v1::DatasetIdentity identity;
  identity.set_name(dataset.name());
  identity.set_fingerprint(dataset.fingerprint());
  return identity;
}

absl::Status Draining() { return absl::UnavailableError("the data service is shutting down"); }

// One unary call that is answered from the dataset alone, and may have to wait for it. Owns itself until it is done.
template <typename Request, typename Response>
class DatasetCall final : public grpc::ServerUnaryReactor {
 public:
  using Function = absl::StatusOr<Response> (*)(const Dataset&, const Request&);

  static std::shared_ptr<DatasetCall> Create(Function function, const Request& request, Response& response) {
    std::shared_ptr<DatasetCall> call(new DatasetCall(function, request, response));
    call->self_ = call;
    return call;
  }

  void Answer(const absl::StatusOr<std::shared_ptr<const Dataset>>& dataset) {
    MutexLock lock(&mutex_);
    if (answered_) return;
    if (!dataset.ok()) return AnswerWith(dataset.status());
    absl::StatusOr<Response> result = function_(**dataset, request_);
    if (result.ok()) response_ = *std::move(result);
    AnswerWith(result.status());
  }

 private:
  DatasetCall(Function function, const Request& request, Response& response)
      : function_(function), request_(request), response_(response) {}

  void AnswerWith(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    answered_ = true;
    Finish(ToGrpcStatus(status));
  }
  void OnCancel() override {
    MutexLock lock(&mutex_);
    if (!answered_) AnswerWith(absl::CancelledError("the client has cancelled"));
  }
  void OnDone() override { self_.reset(); }

  const Function function_;
  const Request request_;
  Response& response_;  // gRPC's, until OnDone
  std::shared_ptr<DatasetCall> self_;
  Mutex mutex_;
  bool answered_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void DataService::SetDataset(std::shared_ptr<const Dataset> dataset) {
  std::vector<Waiter> waiters;
  {
    MutexLock lock(&mutex_);
    dataset_ = dataset;
    waiters.swap(waiters_);
  }
  for (const Waiter& waiter : waiters) waiter.resume(dataset);
}

std::shared_ptr<const Dataset> DataService::dataset() const {
  MutexLock lock(&mutex_);
  return dataset_;
}

void DataService::Drain() {
  std::vector<Waiter> waiters;
  std::vector<std::shared_ptr<BatchStream>> streams;
  {
    MutexLock lock(&mutex_);
    draining_ = true;
    waiters.swap(waiters_);
    for (const auto& [_, stream] : streams_) streams.push_back(stream);
  }
  for (const Waiter& waiter : waiters) waiter.resume(Draining());
  for (const auto& stream : streams) stream->End(Draining());
}

std::string DataService::StreamsText() const {
  MutexLock lock(&mutex_);
  std::string text = absl::StrCat("batch streams: ", streams_.size(), "\n");
  if (dataset_ == nullptr) absl::StrAppend(&text, "calls that wait for the dataset: ", waiters_.size(), "\n");
  for (const auto& [_, stream] : streams_) absl::StrAppend(&text, "  ", stream->Describe(), "\n");
  return text;
}

void DataService::WhenLoaded(Waiter waiter) {
  absl::StatusOr<std::shared_ptr<const Dataset>> outcome = Draining();
  {
    MutexLock lock(&mutex_);
    if (!draining_) {
      // Clients that time out and ask again would pile up otherwise.
      std::erase_if(waiters_, [](const Waiter& earlier) { return earlier.call.expired(); });
      if (dataset_ != nullptr) {
        outcome = dataset_;
      } else if (waiters_.size() < limits_.waiting) {
        waiters_.push_back(std::move(waiter));
        return;
      } else {
        outcome = absl::ResourceExhaustedError(absl::StrCat("the dataset is being loaded, and the limit of ",
                                                            limits_.waiting, " calls that wait for it is reached"));
      }
    }
  }
  waiter.resume(outcome);
}

template <typename Request, typename Response>
grpc::ServerUnaryReactor* DataService::AnswerOnceLoaded(absl::StatusOr<Response> (*function)(const Dataset&,
                                                                                             const Request&),
                                                        const Request& request, Response& response) {
  const auto call = DatasetCall<Request, Response>::Create(function, request, response);
  WhenLoaded({.call = call, .resume = [call = std::weak_ptr(call)](const auto& dataset) {
                if (const auto waiting = call.lock()) waiting->Answer(dataset);
              }});
  return call.get();
}

grpc::ServerUnaryReactor* DataService::DescribeDataset(grpc::CallbackServerContext* /*context*/,
                                                       const v1::DescribeDatasetRequest* request,
                                                       v1::DatasetInfo* response) {
  return AnswerOnceLoaded(&Describe, *request, *response);
}

grpc::ServerUnaryReactor* DataService::IdentifyDataset(grpc::CallbackServerContext* /*context*/,
                                                       const v1::IdentifyDatasetRequest* request,
                                                       v1::DatasetIdentity* response) {
  return AnswerOnceLoaded(&Identify, *request, *response);
}

grpc::ServerUnaryReactor* DataService::ExpectVisits(grpc::CallbackServerContext* /*context*/,
                                                    const v1::ExpectedVisitsRequest* request,
                                                    v1::ExpectedVisits* response) {
  return AnswerOnceLoaded(&millrace::ExpectVisits, *request, *response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* DataService::StreamBatches(
    grpc::CallbackServerContext* context) {
  auto stream =
      std::make_shared<BatchStream>(context->peer(), metrics_, [this](BatchStream* closed) { Remove(closed); });
  bool too_many = false;
  {
    MutexLock lock(&mutex_);
    too_many = streams_.size() >= limits_.streams;
    streams_.emplace(stream.get(), stream);
  }
  if (too_many) {
    stream->End(absl::ResourceExhaustedError(
        absl::StrCat("the limit of ", limits_.streams, " batch streams at once is reached")));
    return stream.get();
  }
  WhenLoaded({.call = stream, .resume = [stream = std::weak_ptr(stream)](const auto& dataset) {
                const auto waiting = stream.lock();
                if (waiting == nullptr) return;
                if (dataset.ok()) {
                  waiting->Begin(*dataset);
                } else {
                  waiting->End(dataset.status());
                }
              }});
  return stream.get();
}

void DataService::Remove(BatchStream* stream) {
  std::shared_ptr<BatchStream> removed;  // destroyed after the lock is given back
  MutexLock lock(&mutex_);
  const auto found = streams_.find(stream);
  removed = std::move(found->second);
  streams_.erase(found);
}

}  // namespace millrace
