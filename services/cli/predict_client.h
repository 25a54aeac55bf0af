#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "millrace/v1/model.grpc.pb.h"

namespace millrace {

// The model service as seen from the command line. Thread-safe.
class PredictClient {
 public:
  // Connects with the first call.
  explicit PredictClient(const std::string& address,
                         const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

  // The service's error, or DEADLINE_EXCEEDED / UNAVAILABLE. No retries.
  absl::StatusOr<v1::PredictResponse> Predict(const v1::PredictRequest& request, absl::Duration timeout);
  absl::StatusOr<v1::ExplainResponse> Explain(const v1::ExplainRequest& request, absl::Duration timeout);
  absl::StatusOr<v1::ListModelsResponse> ListModels(absl::Duration timeout);
  // Calls `changed` with every list that comes, until the service ends the call. Never OK.
  absl::Status WatchVersions(const std::function<void(const v1::WatchVersionsResponse&)>& changed);

 private:
  const std::unique_ptr<v1::ModelService::Stub> stub_;
};

}  // namespace millrace
