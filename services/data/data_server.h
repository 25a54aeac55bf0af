#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/service_runtime.h"
#include "services/data/data_metrics.h"
#include "services/data/data_service.h"
#include "services/data/dataset.h"

namespace millrace {

// The millrace-data process: loads the dataset on a thread of its own while the listeners already answer, so that
// starting is quick and /readyz says how far it is. A dataset that cannot be read ends the process.
class DataServer final : public Service {
 public:
  struct Options {
    std::string data_dir;  // as FindDataset takes it
    Dataset::Options dataset = {};
  };

  // Errors of FindDataset: a missing directory or file is told before anything listens.
  static absl::StatusOr<std::unique_ptr<Service>> Create(const Options& options, ServiceContext& context);
  // Waits for the loading thread.
  ~DataServer() override;

  std::vector<grpc::Service*> GrpcServices() override { return {&service_}; }
  absl::Status Ready() override;
  std::string StatusPage() override;
  absl::Status Started(const ListenAddresses& addresses) override;
  void Drain(absl::Duration grace) override;

 private:
  DataServer(const Options& options, DatasetSource source, ServiceContext& context);

  void Load();

  const Options options_;
  const DatasetSource source_;
  ServiceContext& context_;
  DataMetrics metrics_;
  DataService service_;
  std::thread loader_;
};

}  // namespace millrace
