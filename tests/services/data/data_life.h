#pragma once

#include <memory>
#include <string>
#include <utility>

#include "common/grpc_server.h"
#include "common/metrics.h"
#include "services/data/data_service.h"

namespace millrace {

// One life of a data service, in this process; without a dataset it is still loading it.
struct DataLife {
  DataLife(const std::string& address, std::shared_ptr<const Dataset> dataset) {
    if (dataset != nullptr) service.SetDataset(std::move(dataset));
    server = GrpcServer::Start({.address = address, .metrics = &metrics}, {&service}).value();
  }

  Metrics metrics{"millrace-data"};
  DataMetrics data_metrics{metrics};
  DataService service{data_metrics};
  std::unique_ptr<GrpcServer> server;  // first to go
};

}  // namespace millrace
