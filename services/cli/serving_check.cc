#include "services/cli/serving_check.h"

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/batch_client.h"
#include "common/clock.h"
#include "common/dataset_client.h"
#include "common/status_macros.h"
#include "services/cli/latency.h"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

constexpr int kCallers = 4;
constexpr uint32_t kFetchBatch = 1000;  // images
constexpr absl::Duration kFetchTimeout = absl::Seconds(30);
constexpr absl::Duration kRequestTimeout = absl::Seconds(10);
constexpr absl::Duration kServeTimeout = absl::Seconds(60);
constexpr absl::Duration kServePollInterval = absl::Milliseconds(50);

// Empty if the version is not known yet.
absl::StatusOr<v1::ModelVersionStatus> FindVersion(PredictClient& client, const std::string& model, uint64_t version) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListModelsResponse models, client.ListModels(absl::Seconds(2)));
  for (const v1::ModelVersionStatus& candidate : models.versions()) {
    if (candidate.model() == model && candidate.version() == version) return candidate;
  }
  return v1::ModelVersionStatus();
}

absl::Status WaitUntilServed(PredictClient& client, const std::string& model, uint64_t version,
                             const std::stop_token& stop) {
  const absl::Time deadline = RealClock().Now() + kServeTimeout;
  std::string last = "the version has not been seen";
  while (!stop.stop_requested() && RealClock().Now() < deadline) {
    const absl::StatusOr<v1::ModelVersionStatus> found = FindVersion(client, model, version);
    if (!found.ok()) {
      last = found.status().ToString();
    } else if (found->state() == v1::ModelVersionStatus::STATE_SERVING) {
      return absl::OkStatus();
    } else if (found->state() == v1::ModelVersionStatus::STATE_REFUSED) {
      return absl::AbortedError(
          absl::StrCat("the model service refused version ", version, " of ", model, ": ", found->reason()));
    }
    absl::SleepFor(kServePollInterval);
  }
  if (stop.stop_requested()) return absl::CancelledError("interrupted");
  return absl::DeadlineExceededError(
      absl::StrCat("the model service does not serve version ", version, " of ", model, ": ", last));
}

struct CallerResult {
  uint64_t requests = 0;
  uint64_t failed = 0;
  uint64_t correct = 0;
  uint64_t reconstructed = 0;
  double error_sum = 0;  // of the reconstructed
  LatencySamples latency;
};

// What the callers share. Each takes the next image that nobody has taken.
struct Check {
  PredictClient& client;
  const std::string& model;
  const uint64_t version;
  const TestImages& images;
  const std::stop_token& stop;
  std::atomic<uint64_t>& done;
  std::atomic<size_t> next{0};
};

void RunCaller(Check& check, CallerResult& result) {
  v1::PredictRequest request;
  request.set_model(check.model);
  request.set_rows(1);
  while (!check.stop.stop_requested()) {
    const size_t image = check.next.fetch_add(1, std::memory_order_relaxed);
    if (image >= check.images.count()) return;
    request.set_raw(check.images.pixels.data() + image * check.images.image_bytes, check.images.image_bytes);
    const absl::Time start = RealClock().Now();
    const absl::StatusOr<v1::PredictResponse> response = check.client.Predict(request, kRequestTimeout);
    result.latency.Add(RealClock().Now() - start);
    ++result.requests;
    if (!response.ok() || response->predictions_size() != 1 || response->version() != check.version) {
      ++result.failed;
    } else if (response->predictions(0).has_error()) {
      ++result.reconstructed;
      result.error_sum += response->predictions(0).error();
    } else if (response->predictions(0).label() == static_cast<uint8_t>(check.images.labels[image])) {
      ++result.correct;
    }
    check.done.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace

absl::StatusOr<TestImages> FetchTestImages(const std::vector<std::string>& addresses, const v1::JobPlan& plan,
                                           const std::stop_token& stop) {
  const v1::DatasetInfo& dataset = plan.dataset();
  v1::BatchPlan batches = BatchPlanOf(plan);
  batches.set_evaluation_batch_size(kFetchBatch);
  TestImages images{.image_bytes = size_t{dataset.channels()} * dataset.height() * dataset.width()};
  BatchClient client({.addresses = addresses, .plan = batches, .image_bytes = images.image_bytes});
  const uint64_t steps = (dataset.test_count() + kFetchBatch - 1) / kFetchBatch;
  MILLRACE_RETURN_IF_ERROR(ForEachBatch(client, v1::SPLIT_TEST, steps, kFetchTimeout, stop,
                                        [&images](const v1::Batch& batch) -> absl::Status {
                                          images.pixels += batch.images();
                                          images.labels += batch.labels();
                                          return absl::OkStatus();
                                        }));
  return images;
}

absl::StatusOr<ServedResult> CheckServing(const std::string& address, const std::string& model, uint64_t version,
                                          const TestImages& images, std::stop_token stop, std::atomic<uint64_t>& done) {
  PredictClient client(address);
  MILLRACE_RETURN_IF_ERROR(WaitUntilServed(client, model, version, stop));
  Check check{client, model, version, images, stop, done};
  std::vector<CallerResult> results(kCallers);
  {
    std::vector<std::jthread> callers;
    for (CallerResult& result : results) callers.emplace_back([&check, &result] { RunCaller(check, result); });
  }
  if (stop.stop_requested()) return absl::CancelledError("interrupted");

  CallerResult total;
  for (const CallerResult& result : results) {
    total.requests += result.requests;
    total.failed += result.failed;
    total.correct += result.correct;
    total.reconstructed += result.reconstructed;
    total.error_sum += result.error_sum;
    total.latency.Merge(result.latency);
  }
  ServedResult served{.version = version, .requests = total.requests, .failed = total.failed};
  if (total.requests > 0) served.accuracy = static_cast<double>(total.correct) / static_cast<double>(total.requests);
  if (total.reconstructed > 0) served.error = total.error_sum / static_cast<double>(total.reconstructed);
  served.p50_ms = total.latency.PercentileMs(50);
  served.p99_ms = total.latency.PercentileMs(99);
  return served;
}

}  // namespace millrace
