// Whether what a version is asked, and what it answers, still looks as it did when the version was made.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/model/drift.h"
#include "common/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"

namespace prometheus {
class Registry;
}

namespace millrace {

//   millrace_model_predicted_rows_total{model,version,class}  rows by most probable class, of models of at most
//                                                             kClassesMax classes
//   millrace_model_confidence{model,version}                  how probable that class is
//   millrace_model_ink{model,version}                         mean pixel, white being 1
//   millrace_model_drift_psi{model,version,of}                population stability index of the recent rows against the
//                                                             reference in the manifest, of class, confidence and ink
struct DriftFamilies {
  prometheus::Family<prometheus::Counter>& predicted;
  prometheus::Family<prometheus::Histogram>& confidence;
  prometheus::Family<prometheus::Histogram>& ink;
  prometheus::Family<prometheus::Gauge>& psi;

  static DriftFamilies Register(prometheus::Registry& registry);
};

// Any thread. A batch costs one look at its numbers and one lock for as long as it takes to add sixty counts.
//
// Recent rows are those of the window that is being filled and of the one before: between kWindowRows and twice as
// many. The index is computed when a window is full, and there is none before the first is.
class DriftWatch {
 public:
  static constexpr uint64_t kWindowRows = 1000;
  static constexpr uint32_t kClassesMax = 64;

  // `classes`: 0 for what does not classify. Without a reference there is no index. The families must outlive it.
  DriftWatch(const DriftFamilies& families, const prometheus::Labels& labels, uint32_t classes,
             std::optional<Distribution> reference);
  // Removes its series.
  ~DriftWatch();
  DriftWatch(const DriftWatch&) = delete;
  DriftWatch& operator=(const DriftWatch&) = delete;

  // For another life of the version, whose files may be others: rows are compared with this reference from now on.
  void SetReference(std::optional<Distribution> reference);
  uint32_t classes() const { return classes_; }

  // As Distribution::Add.
  template <typename Pixel>
  void Observe(std::span<const float> answers, std::span<const Pixel> pixels, size_t rows) {
    Distribution batch{.classes = std::vector<uint64_t>(classes_)};
    batch.Add(answers, pixels, rows);
    Count(batch);
  }

 private:
  void Count(const Distribution& batch);
  void Compare(const Distribution& recent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  DriftFamilies families_;
  const prometheus::Labels labels_;
  const uint32_t classes_;
  std::vector<prometheus::Counter*> predicted_;
  prometheus::Histogram* confidence_ = nullptr;  // null for what does not classify
  prometheus::Histogram* ink_ = nullptr;

  Mutex mutex_;
  std::optional<Distribution> reference_ ABSL_GUARDED_BY(mutex_);
  Distribution window_ ABSL_GUARDED_BY(mutex_);
  Distribution before_ ABSL_GUARDED_BY(mutex_);
  std::vector<prometheus::Gauge*> psi_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
