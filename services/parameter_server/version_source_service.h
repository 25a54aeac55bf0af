// Hands out the versions that the job has exported: implements v1.VersionSource over <root>/<model>/.
//
// Threads: runs on gRPC's callback threads; a call reads at most 128 manifests or 1 MiB. Keeps no state, so an answer
// is as new as the directory and a reader that comes back goes on where it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/version_source.grpc.pb.h"

namespace millrace {

class VersionSourceService final : public v1::VersionSource::CallbackService {
 public:
  // `root` may come to exist later.
  VersionSourceService(std::filesystem::path root, std::string model);

  grpc::ServerUnaryReactor* ListExportedVersions(grpc::CallbackServerContext* context,
                                                 const v1::ListExportedVersionsRequest* request,
                                                 v1::ListExportedVersionsResponse* response) override;
  grpc::ServerUnaryReactor* ReadExportedFile(grpc::CallbackServerContext* context,
                                             const v1::ReadExportedFileRequest* request,
                                             v1::ReadExportedFileResponse* response) override;

 private:
  absl::Status List(const v1::ListExportedVersionsRequest& request, v1::ListExportedVersionsResponse& response) const;
  absl::StatusOr<std::string> Read(const v1::ReadExportedFileRequest& request) const;

  const std::string model_;
  const std::filesystem::path directory_;  // of the model
};

}  // namespace millrace
