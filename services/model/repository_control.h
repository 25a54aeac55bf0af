// The Open Inference Protocol's RepositoryModelLoad and RepositoryModelUnload, for gRPC and REST alike, once the caller
// was found to be allowed to.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "inference/grpc_service.pb.h"
#include "services/model/version_loader.h"

namespace millrace {

// Any thread. The loader must outlive the control.
class RepositoryControl {
 public:
  explicit RepositoryControl(VersionLoader& loader) : loader_(loader) {}

  // As VersionLoader::Reload, and INVALID_ARGUMENT for a request that names no model or brings what is to be loaded.
  void Load(const inference::RepositoryModelLoadRequest& request, std::function<void(const absl::Status&)> done);
  // As VersionLoader::Unload, and INVALID_ARGUMENT for a request that names no model.
  absl::Status Unload(const inference::RepositoryModelUnloadRequest& request);

 private:
  VersionLoader& loader_;
};

}  // namespace millrace
