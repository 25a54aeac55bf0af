// What the Open Inference Protocol tells about the service and its models, for gRPC and REST alike.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"
#include "services/model/batcher.h"
#include "services/model/serving_table.h"

namespace millrace {

// Any thread. Errors are those of ServingTable::Find and ParseModelVersion.
class OpenInferenceCatalog {
 public:
  // `ready`: whether the service as a whole is; any thread. The table must outlive the catalog.
  OpenInferenceCatalog(const ServingTable& table, const Batcher::Limits& limits, std::function<absl::Status()> ready)
      : table_(table), limits_(limits), ready_(std::move(ready)) {}

  absl::Status Ready() const { return ready_(); }
  // OK: a request for it would be answered now. Here and below a version may be a label. An empty version: the one that
  // serves.
  absl::Status ModelReady(const std::string& model, const std::string& version) const;

  inference::ServerMetadataResponse Server() const;
  absl::StatusOr<inference::ModelMetadataResponse> Metadata(const std::string& model, const std::string& version) const;
  absl::StatusOr<inference::ModelConfig> Config(const std::string& model, const std::string& version) const;
  // Empty: of all models, of all versions.
  absl::StatusOr<inference::ModelStatisticsResponse> Statistics(const std::string& model,
                                                                const std::string& version) const;
  inference::RepositoryIndexResponse Index(bool ready_only) const;

  // For a request. `version`: a number or a label of ServingTable::FindLabel.
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> Find(const std::string& model, const std::string& version) const;

  absl::StatusOr<std::shared_ptr<const LoadedVersion>> FindLabel(const std::string& model,
                                                                 const std::string& label) const {
    return table_.FindLabel(model, label);
  }

 private:
  const ServingTable& table_;
  const Batcher::Limits limits_;
  const std::function<absl::Status()> ready_;
};

}  // namespace millrace
