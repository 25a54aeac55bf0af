// ModelAdmin (proto/millrace/v1/model.proto): what operators may do. Translation, and who may call.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "millrace/v1/model.grpc.pb.h"
#include "services/model/operator_check.h"
#include "services/model/serving_table.h"
#include "services/model/version_loader.h"

namespace millrace {

// Any thread. The references must outlive the service.
class AdminService final : public v1::ModelAdmin::CallbackService {
 public:
  struct Options {
    std::filesystem::path repository;
    std::string token_file = {};  // of the bearer token; empty: none is asked for
    bool open = false;            // without a token: whether anybody may call
  };
  AdminService(const Options& options, const ServingTable& table, VersionLoader& loader);

  grpc::ServerUnaryReactor* Pin(grpc::CallbackServerContext* context, const v1::PinRequest* request,
                                v1::PinResponse* response) override;
  grpc::ServerUnaryReactor* Rollback(grpc::CallbackServerContext* context, const v1::RollbackRequest* request,
                                     v1::RollbackResponse* response) override;

 private:
  absl::Status PinVersion(const v1::PinRequest& request, v1::PinResponse& response);
  absl::Status RollBack(const v1::RollbackRequest& request, v1::RollbackResponse& response);
  absl::Status CheckThere(const std::string& model, uint64_t version) const;

  const std::filesystem::path repository_;
  const OperatorCheck check_;
  const ServingTable& table_;
  VersionLoader& loader_;
};

}  // namespace millrace
