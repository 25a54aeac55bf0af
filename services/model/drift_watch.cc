#include "services/model/drift_watch.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/registry.h"

namespace millrace {
namespace {

template <typename Builder>
auto& Add(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

// Of the histogram with the sketch's bins; its last bucket, to infinity, is the last bin.
prometheus::Histogram::BucketBoundaries Boundaries(double width) {
  prometheus::Histogram::BucketBoundaries boundaries;
  for (size_t i = 1; i < Distribution::kBins; ++i) boundaries.push_back(static_cast<double>(i) * width);
  return boundaries;
}

// The sum is that of the bins' middles: near enough for a mean, and the rows need not be looked at again.
void Observe(const std::array<uint64_t, Distribution::kBins>& bins, double width, prometheus::Histogram& histogram) {
  std::vector<double> counts(bins.begin(), bins.end());
  double sum = 0;
  for (size_t i = 0; i < bins.size(); ++i) sum += counts[i] * (static_cast<double>(i) + 0.5) * width;
  histogram.ObserveMultiple(counts, sum);
}

}  // namespace

DriftFamilies DriftFamilies::Register(prometheus::Registry& registry) {
  return {
      .predicted = Add(prometheus::BuildCounter(), registry, "millrace_model_predicted_rows_total",
                       "Rows answered, by most probable class."),
      .confidence = Add(prometheus::BuildHistogram(), registry, "millrace_model_confidence",
                        "How probable the most probable class of a row is."),
      .ink = Add(prometheus::BuildHistogram(), registry, "millrace_model_ink",
                 "Mean pixel of a row that was answered, white being 1."),
      .psi = Add(prometheus::BuildGauge(), registry, "millrace_model_drift_psi",
                 "Population stability index of recent rows against the version's reference, by what is compared.")};
}

DriftWatch::DriftWatch(const DriftFamilies& families, const prometheus::Labels& labels, uint32_t classes,
                       std::optional<Distribution> reference)
    : families_(families), labels_(labels), classes_(classes), reference_(std::move(reference)) {
  if (reference_ && reference_->classes.size() != classes_) reference_.reset();
  window_.classes.resize(classes);
  before_.classes.resize(classes);
  for (uint32_t i = 0; i < classes && classes <= kClassesMax; ++i) {
    prometheus::Labels with_class = labels_;
    with_class["class"] = absl::StrCat(i);
    predicted_.push_back(&families_.predicted.Add(with_class));
  }
  if (classes > 0) confidence_ = &families_.confidence.Add(labels_, Boundaries(Distribution::kConfidenceWidth));
  ink_ = &families_.ink.Add(labels_, Boundaries(Distribution::kInkWidth));
}

DriftWatch::~DriftWatch() {
  for (prometheus::Counter* counter : predicted_) families_.predicted.Remove(counter);
  for (prometheus::Gauge* gauge : psi_) families_.psi.Remove(gauge);
  if (confidence_ != nullptr) families_.confidence.Remove(confidence_);
  families_.ink.Remove(ink_);
}

void DriftWatch::SetReference(std::optional<Distribution> reference) {
  if (reference && reference->classes.size() != classes_) reference.reset();
  MutexLock lock(&mutex_);
  reference_ = std::move(reference);
  window_ = before_ = Distribution{.classes = std::vector<uint64_t>(classes_)};
}

void DriftWatch::Count(const Distribution& batch) {
  for (size_t i = 0; i < predicted_.size(); ++i) {
    if (batch.classes[i] > 0) predicted_[i]->Increment(static_cast<double>(batch.classes[i]));
  }
  if (confidence_ != nullptr) millrace::Observe(batch.confidence, Distribution::kConfidenceWidth, *confidence_);
  millrace::Observe(batch.ink, Distribution::kInkWidth, *ink_);
  MutexLock lock(&mutex_);
  if (!reference_) return;
  window_.Add(batch);
  if (window_.rows < kWindowRows) return;
  before_.Add(window_);
  Compare(before_);
  before_ = std::exchange(window_, Distribution{.classes = std::vector<uint64_t>(classes_)});
}

void DriftWatch::Compare(const Distribution& recent) {
  std::vector<std::pair<const char*, double>> indices = {{"ink", PopulationStability(reference_->ink, recent.ink)}};
  if (classes_ > 0) {
    indices.emplace_back("class", PopulationStability(reference_->classes, recent.classes));
    indices.emplace_back("confidence", PopulationStability(reference_->confidence, recent.confidence));
  }
  for (size_t i = 0; i < indices.size(); ++i) {
    if (i == psi_.size()) {
      prometheus::Labels labels = labels_;
      labels["of"] = indices[i].first;
      psi_.push_back(&families_.psi.Add(labels));
    }
    psi_[i]->Set(indices[i].second);
  }
}

}  // namespace millrace
