#include "services/parameter_server/reference_images.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/batch_client.h"
#include "common/dataset_client.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {

ReferenceImages::ReferenceImages(Options options, v1::JobPlan plan)
    : options_(std::move(options)), plan_(std::move(plan)) {}

std::vector<uint8_t> ReferenceImages::Get() {
  if (plan_.dataset().validation_count() == 0) return {};
  MutexLock lock(&mutex_);
  if (!images_.empty()) return images_;
  absl::StatusOr<std::vector<uint8_t>> images = Fetch();
  if (images.ok()) {
    images_ = *std::move(images);
  } else {
    LogWarning("exporting without a reference for drift: no validation images", {{"reason", images.status()}});
  }
  return images_;
}

absl::StatusOr<std::vector<uint8_t>> ReferenceImages::Fetch() const {
  const v1::DatasetInfo& dataset = plan_.dataset();
  const uint64_t image_bytes = uint64_t{dataset.channels()} * dataset.height() * dataset.width();
  const uint64_t rows = std::min(kRowsMax, dataset.validation_count());
  const uint64_t batch = std::max<uint64_t>(1, plan_.spec().evaluation_batch_size());
  std::vector<BatchKey> keys;
  for (uint64_t step = 0; step * batch < rows; ++step) keys.push_back({.split = v1::SPLIT_VALIDATION, .step = step});

  BatchClient client({.addresses = options_.addresses,
                      .plan = BatchPlanOf(plan_),
                      .image_bytes = image_bytes,
                      .credentials = options_.credentials});
  MILLRACE_RETURN_IF_ERROR(client.Request(keys));
  const absl::Time deadline = absl::Now() + options_.timeout;
  std::vector<uint8_t> images;
  for (const BatchKey& key : keys) {
    MILLRACE_ASSIGN_OR_RETURN(const v1::Batch got, client.Get(key, deadline - absl::Now()));
    images.insert(images.end(), got.images().begin(), got.images().end());
  }
  images.resize(std::min<uint64_t>(images.size(), rows * image_bytes));
  return images;
}

}  // namespace millrace
