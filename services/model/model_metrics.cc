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
prometheus::Histogram::BucketBoundaries BatchSizes() { return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}; }

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
      batch_wait_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_batch_wait_seconds",
                                   "Part of it between getting an executor and the forward pass, for answered "
                                   "requests.")),
      compute_seconds_(Register(prometheus::BuildHistogram(), registry, "millrace_model_compute_seconds",
                                "Part of it spent in the forward pass, for answered requests.")),
      batch_rows_(Register(prometheus::BuildHistogram(), registry, "millrace_model_batch_rows",
                           "Rows of the batches that were computed.")),
      batches_(Register(prometheus::BuildCounter(), registry, "millrace_model_batches_total",
                        "Batches computed, by why each was begun when it was.")),
      rejected_(Register(prometheus::BuildCounter(), registry, "millrace_model_rejected_total",
                         "Predict requests that were not admitted, by reason.")),
      expired_rows_(Register(prometheus::BuildCounter(), registry, "millrace_model_expired_rows_executed_total",
                             "Rows computed although their deadline had passed. Anything but 0 is a bug.")),
      in_flight_(Register(prometheus::BuildGauge(), registry, "millrace_model_requests_in_flight",
                          "Predict requests admitted and not yet answered.")),
      canary_score_(Register(prometheus::BuildGauge(), registry, "millrace_model_canary_score",
                             "Accuracy of a version on the canary set; of an autoencoder, its error.")),
      candidate_version_(Register(prometheus::BuildGauge(), registry, "millrace_model_candidate_version",
                                  "Version that a rollout tries beside the active one; 0 if none.")),
      pinned_version_(Register(prometheus::BuildGauge(), registry, "millrace_model_pinned_version",
                               "Version that is to serve whatever is pushed; 0: none.")),
      rollouts_(Register(prometheus::BuildCounter(), registry, "millrace_model_rollouts_total",
                         "Rollouts that have ended, by result and, for verdicts against a candidate, reason.")),
      rollout_rows_(Register(prometheus::BuildCounter(), registry, "millrace_model_rollout_rows_total",
                             "Rows that a candidate and the active version were both asked for, by result, and rows "
                             "dropped for lack of time.")),
      repository_readable_(&Register(prometheus::BuildGauge(), registry, "millrace_model_repository_readable",
                                     "1 if the repository could be read at the last poll.")
                                .Add({})),
      drift_(DriftFamilies::Register(registry)) {}

std::shared_ptr<VersionSeries> ModelMetrics::AddVersion(const std::string& model, uint64_t version) {
  const VersionKey key(model, version);
  MutexLock lock(&mutex_);
  UsedSeries& used = used_[key];
  if (used.users++ == 0) {
    used.series.reset(new VersionSeries(*this, {{"model", model}, {"version", absl::StrCat(version)}}));
  }
  return {used.series.get(), [self = shared_from_this(), key](VersionSeries*) { self->Release(key); }};
}

void ModelMetrics::Release(const VersionKey& key) {
  MutexLock lock(&mutex_);
  const auto used = used_.find(key);
  if (--used->second.users == 0) used_.erase(used);
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
  SetCandidate(model, 0);
  pinned_version_.Add({{"model", model}});
  rollouts_.Add({{"model", model}, {"result", "promoted"}, {"reason", ""}});
  RowsOfRollouts(model);
}

void ModelMetrics::SetPinned(const std::string& model, uint64_t version) {
  pinned_version_.Add({{"model", model}}).Set(static_cast<double>(version));
}

void ModelMetrics::SetCandidate(const std::string& model, uint64_t version) {
  candidate_version_.Add({{"model", model}}).Set(static_cast<double>(version));
}

void ModelMetrics::CountRollout(const std::string& model, const std::string& result, const std::string& reason) {
  rollouts_.Add({{"model", model}, {"result", result}, {"reason", reason}}).Increment();
}

ModelMetrics::RolloutRows ModelMetrics::RowsOfRollouts(const std::string& model) {
  const auto rows = [&](const char* result) { return &rollout_rows_.Add({{"model", model}, {"result", result}}); };
  return {.agree = rows("agree"), .differ = rows("differ"), .failed = rows("failed"), .dropped = rows("dropped")};
}

VersionSeries::VersionSeries(ModelMetrics& owner, prometheus::Labels labels)
    : owner_(owner),
      labels_(std::move(labels)),
      request_seconds_(&owner_.request_seconds_.Add(labels_, Latencies())),
      queue_seconds_(&owner_.queue_seconds_.Add(labels_, Latencies())),
      batch_wait_seconds_(&owner_.batch_wait_seconds_.Add(labels_, Latencies())),
      compute_seconds_(&owner_.compute_seconds_.Add(labels_, Latencies())),
      batch_rows_(&owner_.batch_rows_.Add(labels_, BatchSizes())),
      expired_rows_(&owner_.expired_rows_.Add(labels_)),
      in_flight_(&owner_.in_flight_.Add(labels_)) {
  for (size_t i = 0; i < batches_.size(); ++i) {
    batches_[i] = &owner_.batches_.Add(With("release", Name(static_cast<Batcher::Release>(i))));
  }
  for (size_t i = 0; i < rejected_.size(); ++i) {
    rejected_[i] = &owner_.rejected_.Add(With("reason", Name(static_cast<Batcher::Refusal::Reason>(i))));
  }
}

prometheus::Labels VersionSeries::With(const char* label, std::string_view value) const {
  prometheus::Labels labels = labels_;
  labels[label] = value;
  return labels;
}

VersionSeries::~VersionSeries() {
  for (std::atomic<prometheus::Counter*>& counter : requests_) {
    if (counter != nullptr) owner_.requests_.Remove(counter);
  }
  owner_.request_seconds_.Remove(request_seconds_);
  owner_.queue_seconds_.Remove(queue_seconds_);
  owner_.batch_wait_seconds_.Remove(batch_wait_seconds_);
  owner_.compute_seconds_.Remove(compute_seconds_);
  owner_.batch_rows_.Remove(batch_rows_);
  owner_.expired_rows_.Remove(expired_rows_);
  owner_.in_flight_.Remove(in_flight_);
  if (canary_score_ != nullptr) owner_.canary_score_.Remove(canary_score_);
  for (prometheus::Counter* counter : batches_) owner_.batches_.Remove(counter);
  for (prometheus::Counter* counter : rejected_) owner_.rejected_.Remove(counter);
}

void VersionSeries::CountRequest(absl::StatusCode code, absl::Duration total) {
  std::atomic<prometheus::Counter*>& slot = requests_[static_cast<int>(code) % kCodes];
  prometheus::Counter* counter = slot.load(std::memory_order_acquire);
  if (counter == nullptr) {
    counter = &owner_.requests_.Add(
        With("code", absl::StatusCodeToString(code)));  // the same one, should two threads come here at once
    slot.store(counter, std::memory_order_release);
  }
  counter->Increment();
  request_seconds_->Observe(absl::ToDoubleSeconds(total));
}

void VersionSeries::ObserveParts(absl::Duration queue, absl::Duration batch_wait, absl::Duration compute) {
  queue_seconds_->Observe(absl::ToDoubleSeconds(queue));
  batch_wait_seconds_->Observe(absl::ToDoubleSeconds(batch_wait));
  compute_seconds_->Observe(absl::ToDoubleSeconds(compute));
}

void VersionSeries::ObserveBatch(uint32_t rows, Batcher::Release release) {
  batch_rows_->Observe(rows);
  batches_[static_cast<size_t>(release)]->Increment();
}

void VersionSeries::SetCanaryScore(const CanaryScore& score) {
  canary_score_ = &owner_.canary_score_.Add(With("measure", Name(score.measure)));
  canary_score_->Set(score.value);
}

void VersionSeries::WatchDrift(uint32_t classes, const std::optional<Distribution>& reference) {
  if (drift_ == nullptr) {
    drift_ = std::make_unique<DriftWatch>(owner_.drift_, labels_, classes, reference);
  } else {
    drift_->SetReference(reference);
  }
}

void VersionSeries::CountRejected(Batcher::Refusal::Reason reason) {
  rejected_[static_cast<size_t>(reason)]->Increment();
}

}  // namespace millrace
