#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "millrace/v1/data.grpc.pb.h"
#include "services/data/data_metrics.h"
#include "services/data/dataset.h"

namespace millrace {

class BatchStream;

// The gRPC service of proto/millrace/v1/data.proto. It answers before the dataset is loaded: calls wait for it, within
// their deadlines. Batch streams are written as raw bytes (batch_encoding.h).
//
// Threads: handlers and streams run on gRPC's threads; nothing blocks. All methods may be called from any thread.
// Lifetime: must outlive the server that it is registered with.
class DataService final
    : public v1::DataService::WithRawCallbackMethod_StreamBatches<
          v1::DataService::WithCallbackMethod_DescribeDataset<v1::DataService::WithCallbackMethod_IdentifyDataset<
              v1::DataService::WithCallbackMethod_ExpectVisits<v1::DataService::Service>>>> {
 public:
  // Calls that are open beyond these limits get RESOURCE_EXHAUSTED: a client that leaks them, or a great many clients,
  // must not take the service's memory.
  struct Limits {
    size_t streams = 1024;
    size_t waiting = 4096;  // for the dataset, streams included
  };

  // `metrics` must outlive the service.
  explicit DataService(DataMetrics& metrics) : DataService(metrics, Limits{}) {}
  DataService(DataMetrics& metrics, Limits limits) : metrics_(metrics), limits_(limits) {}

  // The dataset is there: calls that wait go on. Once.
  void SetDataset(std::shared_ptr<const Dataset> dataset);

  // Null until it is loaded.
  std::shared_ptr<const Dataset> dataset() const;

  // Ends streams and calls that wait with UNAVAILABLE, and refuses new streams: clients go on elsewhere.
  void Drain();

  // How many calls wait for the dataset, and one line per open stream: who, what was sent, what it waits for.
  std::string StreamsText() const;

  grpc::ServerUnaryReactor* DescribeDataset(grpc::CallbackServerContext* context,
                                            const v1::DescribeDatasetRequest* request,
                                            v1::DatasetInfo* response) override;
  grpc::ServerUnaryReactor* IdentifyDataset(grpc::CallbackServerContext* context,
                                            const v1::IdentifyDatasetRequest* request,
                                            v1::DatasetIdentity* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamBatches(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ExpectVisits(grpc::CallbackServerContext* context, const v1::ExpectedVisitsRequest* request,
                                         v1::ExpectedVisits* response) override;

 private:
  // A call that waits for the dataset.
  struct Waiter {
    std::weak_ptr<const void> call;  // expired: the call is over, and the waiter may be dropped
    // Gets the dataset once it is loaded, or why there will be none.
    std::function<void(const absl::StatusOr<std::shared_ptr<const Dataset>>&)> resume;
  };
  // Resumes it with the dataset once that is loaded, with UNAVAILABLE if the service drains first, or with
  // RESOURCE_EXHAUSTED if too many wait. Maybe at once; in any case without a lock of this class.
  void WhenLoaded(Waiter waiter);

  // A call that is answered by `function` once there is a dataset.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* AnswerOnceLoaded(absl::StatusOr<Response> (*function)(const Dataset&, const Request&),
                                             const Request& request, Response& response);

  void Remove(BatchStream* stream);

  DataMetrics& metrics_;
  const Limits limits_;

  mutable Mutex mutex_;
  std::shared_ptr<const Dataset> dataset_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  std::map<BatchStream*, std::shared_ptr<BatchStream>> streams_ ABSL_GUARDED_BY(mutex_);  // owns them while open
};

}  // namespace millrace
