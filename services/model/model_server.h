// The model service whole: repository watched, versions verified and swapped in, requests answered.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/service_runtime.h"
#include "services/model/admin_service.h"
#include "services/model/explainer.h"
#include "services/model/inference_engine.h"
#include "services/model/open_inference_catalog.h"
#include "services/model/open_inference_service.h"
#include "services/model/predict_service.h"
#include "services/model/predictor.h"
#include "services/model/request_log.h"
#include "services/model/rest_api.h"
#include "services/model/serving_table.h"
#include "services/model/version_loader.h"
#include "services/model/version_mirror.h"

namespace millrace {

class ModelServer : public Service {
 public:
  struct Options {
    std::filesystem::path repository;
    std::string source = {};  // HOST:PORT or unix:/path from which the repository is filled; empty: by others
    std::shared_ptr<grpc::ChannelCredentials> source_credentials = nullptr;  // as MakeChannel takes them
    absl::Duration poll_interval = absl::Milliseconds(500);                  // (0, 1 h]
    Batcher::Limits limits;
    std::string canary_set = {};  // CanarySet::Read's path; empty: versions are not compared
    double canary_margin = 0.02;  // [0, 1]
    RolloutOptions rollout = {};
    size_t standby_versions = 0;         // of each model, beside the one that serves
    std::vector<std::string> pins = {};  // MODEL=VERSION: as VersionLoader::Pin, from the start
    std::string admin_token_file = {};   // bearer token of operators; empty: none is asked for
    bool admin_open = false;             // without a token: whether anybody may pin, load and unload versions
    bool admin_open_http = false;        // the same over HTTP
    std::optional<RequestLog::Options> request_log = std::nullopt;
    // After SIGTERM: how long requests are still answered while the load balancer learns that we are not ready.
    absl::Duration drain_delay = absl::Seconds(2);  // [0, 1 h]
  };

  // A repository that is not there yet is waited for, as is a version that is pinned. FAILED_PRECONDITION if its path
  // is not a directory; INVALID_ARGUMENT for an option out of range, or a canary set that cannot be read. With a source
  // the repository is made; errors of the file system.
  static absl::StatusOr<std::unique_ptr<ModelServer>> Create(Options options, LoadVersion load, Metrics& metrics,
                                                             const Clock& clock);

  std::vector<grpc::Service*> GrpcServices() override { return {&service_, &open_inference_, &admin_}; }
  HttpApi Api() override { return rest_.Api(); }
  // OK while at least one verified version serves and no drain has begun. A push never changes it back.
  absl::Status Ready() override;
  // Models that serve.
  std::vector<std::string> HealthNames() override { return table_.serving_models(); }
  std::string StatusPage() override;
  absl::Status Started(const ListenAddresses& addresses) override;
  void Drain(absl::Duration grace) override;

 private:
  using Pins = std::map<std::string, uint64_t>;  // by model

  ModelServer(Options options, const Pins& pins, std::optional<CanarySet> canary_set, LoadVersion load,
              std::unique_ptr<RequestLog> request_log, Metrics& metrics, const Clock& clock);

  const Options options_;
  const std::shared_ptr<ModelMetrics> metrics_;
  std::atomic<bool> draining_{false};
  const std::unique_ptr<RequestLog> request_log_;  // null: none
  ServingTable table_;
  InferenceEngine engine_;
  Explainer explainer_;
  PredictService service_;
  const std::unique_ptr<VersionMirror> mirror_;  // null without a source
  OpenInferenceCatalog catalog_;
  RepositoryControl control_;
  OpenInferenceService open_inference_;
  RestApi rest_;
  VersionLoader loader_;
  AdminService admin_;
};

}  // namespace millrace
