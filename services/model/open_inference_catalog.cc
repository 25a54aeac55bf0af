#include "services/model/open_inference_catalog.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "services/model/open_inference.h"

namespace millrace {
namespace {

constexpr std::string_view kReady = "READY";
constexpr char kPlatform[] = "pytorch_torchscript";

bool IsLabel(std::string_view version) { return version == ServingTable::kStable || version == ServingTable::kCanary; }

std::string_view StateOf(const VersionReport& report) {
  switch (report.state) {
    case VersionReport::State::kLoading:
      return "LOADING";
    case VersionReport::State::kServing:
    case VersionReport::State::kCandidate:
    case VersionReport::State::kStandby:
      return kReady;
    case VersionReport::State::kRetired:
      return report.reason.empty() ? "UNLOADING" : "UNAVAILABLE";
    case VersionReport::State::kRefused:
      return "UNAVAILABLE";
  }
  return "UNKNOWN";
}

bool IsReady(const VersionReport& report) { return StateOf(report) == kReady; }

void Fill(const TensorSpec& spec, inference::ModelMetadataResponse::TensorMetadata* metadata) {
  metadata->set_name(spec.name);
  metadata->set_datatype(spec.datatype);
  metadata->add_shape(-1);
  for (const int64_t size : spec.row_shape) metadata->add_shape(size);
}

template <typename Tensor>
void FillConfig(const TensorSpec& spec, inference::DataType type, Tensor* tensor) {
  tensor->set_name(spec.name);
  tensor->set_data_type(type);
  tensor->mutable_dims()->Assign(spec.row_shape.begin(), spec.row_shape.end());
}

inference::StatisticDuration DurationOf(const VersionStatistics::Total& total) {
  inference::StatisticDuration duration;
  duration.set_count(total.count);
  duration.set_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(total.time)));
  return duration;
}

void FillStatistics(const ServingTable::Account& account, inference::ModelStatistics* statistics) {
  const VersionStatistics::Numbers numbers = account.statistics->numbers();
  statistics->set_name(account.model);
  statistics->set_version(absl::StrCat(account.version));
  if (numbers.last != absl::InfinitePast()) {
    statistics->set_last_inference(static_cast<uint64_t>(absl::ToUnixMillis(numbers.last)));
  }
  statistics->set_inference_count(numbers.rows);
  statistics->set_execution_count(numbers.batches);
  inference::InferStatistics* requests = statistics->mutable_inference_stats();
  *requests->mutable_success() = DurationOf(numbers.success);
  *requests->mutable_fail() = DurationOf(numbers.fail);
  *requests->mutable_queue() = DurationOf(numbers.queue);
  *requests->mutable_compute_input() = DurationOf(numbers.batch_wait);
  *requests->mutable_compute_infer() = DurationOf(numbers.compute);
  *requests->mutable_compute_output() = DurationOf(numbers.rest);
  for (const auto& [rows, total] : numbers.batch_sizes) {
    inference::InferBatchStatistics* batches = statistics->add_batch_stats();
    batches->set_batch_size(rows);
    *batches->mutable_compute_infer() = DurationOf(total);
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LoadedVersion>> OpenInferenceCatalog::Find(const std::string& model,
                                                                                const std::string& version) const {
  if (IsLabel(version)) return table_.FindLabel(model, version);
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t number, ParseModelVersion(version));
  return table_.Find(model, number);
}

absl::Status OpenInferenceCatalog::ModelReady(const std::string& model, const std::string& version) const {
  return Find(model, version).status();
}

inference::ServerMetadataResponse OpenInferenceCatalog::Server() const {
  inference::ServerMetadataResponse response;
  response.set_name("millrace");
  response.set_version(std::string(Version()));
  for (const char* extension :
       {"binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"}) {
    response.add_extensions(extension);
  }
  return response;
}

absl::StatusOr<inference::ModelMetadataResponse> OpenInferenceCatalog::Metadata(const std::string& model,
                                                                                const std::string& version) const {
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> loaded, Find(model, version));
  const ModelInfo& info = loaded->info();
  inference::ModelMetadataResponse response;
  response.set_name(info.model);
  for (const VersionReport& report : table_.Report()) {
    if (report.model == info.model && IsReady(report)) {
      response.add_versions(absl::StrCat(report.version));
    }
  }
  response.set_platform(kPlatform);
  Fill(InputOf(info), response.add_inputs());
  for (const TensorSpec& spec : OutputsOf(info)) Fill(spec, response.add_outputs());
  return response;
}

absl::StatusOr<inference::ModelConfig> OpenInferenceCatalog::Config(const std::string& model,
                                                                    const std::string& version) const {
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> loaded, Find(model, version));
  const ModelInfo& info = loaded->info();
  inference::ModelConfig config;
  config.set_name(info.model);
  config.set_platform(kPlatform);
  config.set_backend("pytorch");
  config.mutable_version_policy()->mutable_latest()->set_num_versions(static_cast<uint32_t>(1 + table_.standby_max()));
  config.set_max_batch_size(kPredictRowsMax);
  FillConfig(InputOf(info), inference::TYPE_UINT8, config.add_input());
  for (const TensorSpec& spec : OutputsOf(info)) FillConfig(spec, inference::TYPE_FP32, config.add_output());
  inference::ModelInstanceGroup* group = config.add_instance_group();
  group->set_name(info.model);
  group->set_count(limits_.executors);
  group->set_kind(inference::ModelInstanceGroup::KIND_CPU);
  inference::ModelQueuePolicy* queue = config.mutable_dynamic_batching()->mutable_default_queue_policy();
  queue->set_allow_timeout_override(true);
  queue->set_max_queue_size(limits_.requests);
  return config;
}

absl::StatusOr<inference::ModelStatisticsResponse> OpenInferenceCatalog::Statistics(const std::string& model,
                                                                                    const std::string& version) const {
  uint64_t number = 0;
  if (IsLabel(version)) {
    MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> labelled, Find(model, version));
    number = labelled->info().version;
  } else {
    MILLRACE_ASSIGN_OR_RETURN(number, ParseModelVersion(version));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<ServingTable::Account> accounts, table_.Accounts(model, number));
  inference::ModelStatisticsResponse response;
  for (const ServingTable::Account& account : accounts) FillStatistics(account, response.add_model_stats());
  return response;
}

inference::RepositoryIndexResponse OpenInferenceCatalog::Index(bool ready_only) const {
  inference::RepositoryIndexResponse response;
  for (const VersionReport& report : table_.Report()) {
    if (ready_only && !IsReady(report)) continue;
    auto* model = response.add_models();
    model->set_name(report.model);
    model->set_version(absl::StrCat(report.version));
    model->set_state(std::string(StateOf(report)));
    model->set_reason(report.reason);
  }
  return response;
}

}  // namespace millrace
