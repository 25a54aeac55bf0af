#include "services/model/model_metrics.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

// The registry owns families and lives with the process's Metrics; holding it keeps them valid for versions that go
// last.
template <typename Builder>
auto& Register(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

prometheus::Histogram::BucketBoundaries Latencies() { return LatencyBuckets(); }

}  // namespace

std::shared_ptr<ModelMetrics> ModelMetrics::Create(Metrics& metrics) {
  std::shared_ptr<prometheus::Registry> registry = metrics.registry();
  return std::shared_ptr<ModelMetrics>(new ModelMetrics(*registry), [registry](ModelMetrics* dead) { delete dead; });
}

ModelMetrics::ModelMetrics(prometheus::Registry& registry)
    : loads_(Register(prometheus::BuildCounter(), registry, "millrace_model_loads_total",
                      "Attempts to load a model version, by result and, for refusals, reason.")),
      load_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_load_seconds",
                             "Time to verify, load and warm a version that was accepted.")),
      active_version_(Register(prometheus::BuildGauge(), registry, "millrace_model_active_version",
                               "Version that answers requests which name none.")),
      active_step_(Register(prometheus::BuildGauge(), registry, "millrace_model_active_step",
                            "Training step of the active version.")),
      requests_(Register(prometheus::BuildCounter(), registry, "millrace_model_requests_total",
                         "Predict requests by the version they were for and gRPC status code.")),
      request_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_request_seconds",
                                "Time of a Predict request inside the service.")),
      queue_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_queue_seconds",
                              "Part of it spent waiting for an executor, for answered requests.")),
      compute_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_compute_seconds",
                                "Part of it spent in the forward pass, for answered requests.")),
      repository_readable_(&Register(prometheus::BuildGauge(), registry, "millrace_model_repository_readable",
                                     "1 if the repository could be read at the last poll.")
                                .Add({})),
      in_flight_(&Register(prometheus::BuildGauge(), registry, "millrace_model_requests_in_flight",
                           "Predict requests admitted and not yet answered.")
                      .Add({})) {}

std::unique_ptr<VersionSeries> ModelMetrics::AddVersion(const std::string& model, uint64_t version) {
  return std::unique_ptr<VersionSeries>(
      new VersionSeries(shared_from_this(), {{"model", model}, {"version", absl::StrCat(version)}}));
}

void ModelMetrics::CountLoad(const std::string& model, const std::string& result, const std::string& reason) {
  loads_.Add({{"model", model}, {"result", result}, {"reason", reason}}).Increment();
}

void ModelMetrics::ObserveLoadTime(const std::string& model, absl::Duration time) {
  static const std::vector<double>& bounds = *new std::vector<double>{0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300};
  load_seconds_.Add({{"model", model}}, bounds).Observe(absl::ToDoubleSeconds(time));
}

void ModelMetrics::SetActive(const std::string& model, uint64_t version, uint64_t step) {
  active_version_.Add({{"model", model}}).Set(static_cast<double>(version));
  active_step_.Add({{"model", model}}).Set(static_cast<double>(step));
}

VersionSeries::VersionSeries(std::shared_ptr<ModelMetrics> owner, prometheus::Labels labels)
    : owner_(std::move(owner)),
      labels_(std::move(labels)),
      request_seconds_(&owner_->request_seconds_.Add(labels_, Latencies())),
      queue_seconds_(&owner_->queue_seconds_.Add(labels_, Latencies())),
      compute_seconds_(&owner_->compute_seconds_.Add(labels_, Latencies())) {}

VersionSeries::~VersionSeries() {
  for (std::atomic<prometheus::Counter*>& counter : requests_) {
    if (counter != nullptr) owner_->requests_.Remove(counter);
  }
  owner_->request_seconds_.Remove(request_seconds_);
  owner_->queue_seconds_.Remove(queue_seconds_);
  owner_->compute_seconds_.Remove(compute_seconds_);
}

void VersionSeries::CountRequest(absl::StatusCode code, absl::Duration total) {
  std::atomic<prometheus::Counter*>& slot = requests_[static_cast<int>(code) % kCodes];
  prometheus::Counter* counter = slot.load(std::memory_order_acquire);
  if (counter == nullptr) {
    prometheus::Labels labels = labels_;
    labels["code"] = absl::StatusCodeToString(code);
    counter = &owner_->requests_.Add(labels);  // the same one, should two threads come here at once
    slot.store(counter, std::memory_order_release);
  }
  counter->Increment();
  request_seconds_->Observe(absl::ToDoubleSeconds(total));
}

void VersionSeries::ObserveParts(absl::Duration queue, absl::Duration compute) {
  queue_seconds_->Observe(absl::ToDoubleSeconds(queue));
  compute_seconds_->Observe(absl::ToDoubleSeconds(compute));
}

}  // namespace millrace
