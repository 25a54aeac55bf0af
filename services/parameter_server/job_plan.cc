#include "services/parameter_server/job_plan.h"

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/augmentation.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/model/replica.h"
#include "common/model_name.h"
#include "common/networks.h"
#include "common/status_macros.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/optimizer_spec.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

constexpr uint64_t kTotalStepsMax = uint64_t{1} << 40;
constexpr uint64_t kEvaluationUnitsMax = uint64_t{1} << 20;

class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text_.empty()) text_ = absl::StrCat("line ", line + 1, ", column ", column + 1, ": ", message);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t min, uint64_t max) {
  if (value < min) return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " is under the minimum of ", min));
  if (value > max) return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " is over the limit of ", max));
  return absl::OkStatus();
}

absl::Status CheckNotNegative(absl::string_view field, double value) {
  if (value >= 0 && std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " must be at least 0 and finite"));
}

absl::Status CheckAsynchrony(const v1::AsynchronySpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckRange("asynchrony.staleness", spec.staleness(), 0, kStalenessMax));
  if (spec.unbounded() && spec.staleness() > 0) {
    return absl::InvalidArgumentError("asynchrony.staleness and asynchrony.unbounded do not go together");
  }
  if (!v1::StaleGradients_IsValid(spec.stale_gradients())) {
    return absl::InvalidArgumentError(
        "asynchrony.stale_gradients is unknown; known: AS_THEY_ARE, SMALLER_STEPS, COMPENSATED");
  }
  if (spec.stale_gradients() != v1::STALE_GRADIENTS_COMPENSATED) return absl::OkStatus();
  if (spec.unbounded()) {
    return absl::InvalidArgumentError("asynchrony.stale_gradients COMPENSATED does not go with asynchrony.unbounded");
  }
  if (spec.compensation() > 0 && spec.compensation() <= 10) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("asynchrony.compensation ", spec.compensation(), " must be over 0 and at most 10"));
}

absl::Status CheckTrainingOptions(const v1::JobSpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckNotNegative("clip_norm", spec.clip_norm()));
  if (spec.clip_norm() > 0 && spec.asynchrony().unbounded()) {
    return absl::InvalidArgumentError(
        "clip_norm does not go with asynchrony.unbounded: each shard applies steps in an order of its own then");
  }
  if (!(spec.label_smoothing() >= 0 && spec.label_smoothing() < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("label_smoothing ", spec.label_smoothing(), " must be at least 0 and below 1"));
  }
  MILLRACE_RETURN_IF_ERROR(CheckNotNegative("early_stopping.min_delta", spec.early_stopping().min_delta()));
  if (!v1::BestBy_IsValid(spec.best_by())) {
    return absl::InvalidArgumentError("best_by is unknown; known: LOSS, ACCURACY");
  }
  if (spec.validation_count() > 0) return absl::OkStatus();
  if (spec.early_stopping().patience() > 0) {
    return absl::InvalidArgumentError("early_stopping.patience needs validation samples: validation_count is 0");
  }
  if (spec.publish_best()) {
    return absl::InvalidArgumentError("publish_best needs validation samples: validation_count is 0");
  }
  return absl::OkStatus();
}

// What only a classifier can be told.
absl::Status CheckLossOptions(const v1::NetworkSpec& network, const v1::JobSpec& spec) {
  if (Classifies(network)) return absl::OkStatus();
  if (spec.label_smoothing() > 0) {
    return absl::InvalidArgumentError("label_smoothing is for a network that classifies; this one is trained by mse");
  }
  if (spec.best_by() == v1::BEST_BY_ACCURACY) {
    return absl::InvalidArgumentError("best_by ACCURACY is for a network that classifies; this one is trained by mse");
  }
  return absl::OkStatus();
}

// A step's samples are spread evenly over its slots, so some slot has just one if there are fewer than two for each.
absl::Status CheckSlotSamples(const NetworkInfo& network, const v1::JobSpec& spec, const v1::DatasetInfo& dataset) {
  if (network.slot_samples_min < 2) return absl::OkStatus();
  const uint64_t last = dataset.train_count() % spec.batch_size();
  for (const uint64_t samples : {uint64_t{spec.batch_size()}, last}) {
    if (samples == 0 || samples >= uint64_t{2} * spec.slots()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("the network cannot be trained on one sample alone (batch normalisation of vectors?), and ",
                     samples == last ? "an epoch's last batch has " : "a batch has ", samples, " samples for ",
                     spec.slots(), " slots; choose another batch_size, fewer slots or another validation_count"));
  }
  return absl::OkStatus();
}

// Numbers that share an exponent must be of similar size. A channel's variance may be a thousandth of its neighbour's,
// and as zero it would be divided by.
absl::Status CheckWire(const NetworkInfo& network, const v1::JobSpec& spec) {
  const uint64_t statistics = network.table.statistics_size();
  if (spec.wire() != v1::NUMBER_FORMAT_MXINT8 || statistics == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("wire MXINT8 is for a network without statistics (batch normalisation); this one has ", statistics));
}

absl::StatusOr<v1::NetworkSpec> ResolveNetwork(const v1::JobSpec& spec, const v1::DatasetInfo& dataset) {
  v1::NetworkSpec network;
  network.set_architecture(spec.architecture());
  if (!spec.torchscript_path().empty()) {
    network.set_torchscript_path(spec.torchscript_path());
    MILLRACE_ASSIGN_OR_RETURN(*network.mutable_torchscript_sha256(), Sha256File(spec.torchscript_path()));
  }
  network.set_channels(dataset.channels());
  network.set_height(dataset.height());
  network.set_width(dataset.width());
  network.set_classes(dataset.classes());
  const bool standard = spec.normalization() == v1::NORMALIZATION_STANDARD;
  if (standard && !(dataset.standard_deviation() > 0 && std::isfinite(dataset.standard_deviation()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("the dataset's standard deviation ", dataset.standard_deviation(), " must be over 0 and finite"));
  }
  network.set_mean(standard ? dataset.mean() : 0);
  network.set_standard_deviation(standard ? dataset.standard_deviation() : 1);
  network.set_loss(spec.loss());
  network.set_loss(LossOf(network));
  return network;
}

}  // namespace

absl::StatusOr<v1::JobSpec> ParseJobSpec(std::string_view text) {
  v1::JobSpec spec;
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(std::string(text), &spec)) return absl::InvalidArgumentError(error.text());
  return spec;
}

absl::Status ValidateJobSpec(const v1::JobSpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckModelName("model_name", spec.model_name()));
  if (spec.architecture().empty()) return absl::InvalidArgumentError("architecture is missing");
  if ((spec.architecture() == "torchscript") != !spec.torchscript_path().empty()) {
    return absl::InvalidArgumentError("torchscript_path goes with architecture \"torchscript\", and only with it");
  }
  MILLRACE_RETURN_IF_ERROR(CheckOptimizerSpec(spec.optimizer()));
  MILLRACE_RETURN_IF_ERROR(CheckSchedule(spec.schedule(), spec.optimizer().learning_rate()));
  MILLRACE_RETURN_IF_ERROR(CheckTrainingOptions(spec));
  MILLRACE_RETURN_IF_ERROR(CheckAsynchrony(spec.asynchrony()));
  MILLRACE_RETURN_IF_ERROR(CheckRange("batch_size", spec.batch_size(), 1, kBatchSamplesMax));
  MILLRACE_RETURN_IF_ERROR(CheckRange("slots", spec.slots(), 1, kSlotsMax));
  MILLRACE_RETURN_IF_ERROR(CheckRange("epochs", spec.epochs(), 1, kEpochsMax));
  MILLRACE_RETURN_IF_ERROR(CheckRange("evaluation_batch_size", spec.evaluation_batch_size(), 1, kBatchSamplesMax));
  if (!v1::Loss_IsValid(spec.loss())) {
    return absl::InvalidArgumentError("loss is unknown; known: CROSS_ENTROPY, MSE");
  }
  if (!v1::NumberFormat_IsValid(spec.wire())) {
    return absl::InvalidArgumentError("wire is unknown; known: FLOAT32, BFLOAT16, FLOAT16, MXINT8");
  }
  if (spec.normalization() != v1::NORMALIZATION_UNIT && spec.normalization() != v1::NORMALIZATION_STANDARD) {
    return absl::InvalidArgumentError("normalization is missing or unknown; known: UNIT, STANDARD");
  }
  MILLRACE_RETURN_IF_ERROR(CheckAugmentation(spec.augmentation()));
  return absl::OkStatus();
}

absl::StatusOr<v1::JobPlan> ResolveJobPlan(const v1::JobSpec& spec, const v1::DatasetInfo& dataset) {
  MILLRACE_RETURN_IF_ERROR(CheckRange("the dataset's number of classes", dataset.classes(), 2, kClassesMax));
  MILLRACE_RETURN_IF_ERROR(CheckRange("the dataset's number of training samples", dataset.train_count(), 1,
                                      std::numeric_limits<uint64_t>::max() / 2));
  if (dataset.validation_count() != spec.validation_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("validation_count ", spec.validation_count(),
                     " is not what the data service carves out: ", dataset.validation_count()));
  }
  for (const uint64_t samples : {dataset.validation_count(), dataset.test_count()}) {
    const uint64_t batch = spec.evaluation_batch_size();
    MILLRACE_RETURN_IF_ERROR(
        CheckRange("the number of evaluation batches of a split (evaluation_batch_size is too "
                   "small)",
                   (samples + batch - 1) / batch, 0, kEvaluationUnitsMax));
  }

  v1::JobPlan plan;
  *plan.mutable_spec() = spec;
  *plan.mutable_dataset() = dataset;
  MILLRACE_ASSIGN_OR_RETURN(*plan.mutable_network(), ResolveNetwork(spec, dataset));
  MILLRACE_ASSIGN_OR_RETURN(const NetworkInfo info, DescribeNetwork(plan.network()));
  MILLRACE_RETURN_IF_ERROR(
      CheckRange("the network's number of parameters", info.table.size(), 1, std::numeric_limits<uint64_t>::max()));
  MILLRACE_RETURN_IF_ERROR(CheckLossOptions(plan.network(), spec));
  MILLRACE_RETURN_IF_ERROR(CheckSlotSamples(info, spec, dataset));
  MILLRACE_RETURN_IF_ERROR(CheckWire(info, spec));
  plan.set_parameter_count(info.table.size());
  plan.set_statistics_count(info.table.statistics_size());
  plan.set_steps_per_epoch(StepsPerEpoch(dataset.train_count(), spec.batch_size()));
  MILLRACE_RETURN_IF_ERROR(CheckRange("steps_per_epoch", plan.steps_per_epoch(), 1, kTotalStepsMax / kEpochsMax));
  plan.set_total_steps(plan.steps_per_epoch() * spec.epochs());
  if (spec.schedule().warmup_steps() >= plan.total_steps()) {
    return absl::InvalidArgumentError(absl::StrCat("schedule.warmup_steps ", spec.schedule().warmup_steps(),
                                                   " must be below the job's ", plan.total_steps(), " steps"));
  }
  return plan;
}

}  // namespace millrace
