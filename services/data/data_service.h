#pragma once

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
class DataService final : public v1::DataService::WithRawCallbackMethod_StreamBatches<
                              v1::DataService::WithCallbackMethod_DescribeDataset<v1::DataService::Service>> {
 public:
  explicit DataService(DataMetrics& metrics) : metrics_(metrics) {}

  // The dataset is there: calls that wait go on. Once.
  void SetDataset(std::shared_ptr<const Dataset> dataset);

  // Null until it is loaded.
  std::shared_ptr<const Dataset> dataset() const;

  // Ends streams and calls that wait with UNAVAILABLE, and refuses new streams: clients go on elsewhere.
  void Drain();

  // One line per open stream: who, what was sent, what it waits for.
  std::string StreamsText() const;

  grpc::ServerUnaryReactor* DescribeDataset(grpc::CallbackServerContext* context,
                                            const v1::DescribeDatasetRequest* request,
                                            v1::DatasetInfo* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamBatches(
      grpc::CallbackServerContext* context) override;

 private:
  // Gets the dataset once it is loaded, or UNAVAILABLE if the service drains first. May be called at once, and without
  // any lock of this class.
  using Waiter = std::function<void(absl::StatusOr<std::shared_ptr<const Dataset>>)>;
  void WhenLoaded(Waiter waiter);

  void Remove(BatchStream* stream);

  DataMetrics& metrics_;

  mutable Mutex mutex_;
  std::shared_ptr<const Dataset> dataset_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  std::map<BatchStream*, std::shared_ptr<BatchStream>> streams_ ABSL_GUARDED_BY(mutex_);  // owns them while open
};

}  // namespace millrace
