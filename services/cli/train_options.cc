#include "services/cli/train_options.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/address.h"
#include "common/augmentation.h"
#include "common/limits.h"
#include "common/model_name.h"
#include "common/networks.h"
#include "common/strings.h"
#include "services/cli/enum_names.h"

namespace millrace {
namespace {

constexpr uint32_t kWorkersMax = 256;

// Of the samples in the train files: a tenth, as MNIST's usual 6,000 of 60,000.
constexpr uint64_t kDefaultValidationCount = 6000;
constexpr uint64_t kDefaultValidationDivisor = 10;

struct NamedOptimizer {
  absl::string_view name;
  v1::OptimizerKind kind;
  double learning_rate;  // Keras' and PyTorch's defaults
  double weight_decay;
};
constexpr std::array<NamedOptimizer, 3> kOptimizers = {{
    {"sgd", v1::OPTIMIZER_KIND_SGD, 1e-2, 0},
    {"adam", v1::OPTIMIZER_KIND_ADAM, 1e-3, 0},
    {"adamw", v1::OPTIMIZER_KIND_ADAMW, 1e-3, 1e-2},
}};

constexpr std::array<Named<v1::NumberFormat>, 4> kWires = {{
    {"fp32", v1::NUMBER_FORMAT_UNSPECIFIED},
    {"bf16", v1::NUMBER_FORMAT_BFLOAT16},
    {"fp16", v1::NUMBER_FORMAT_FLOAT16},
    {"mxint8", v1::NUMBER_FORMAT_MXINT8},
}};

absl::StatusOr<NamedOptimizer> FindOptimizer(absl::string_view name) {
  for (const NamedOptimizer& optimizer : kOptimizers) {
    if (optimizer.name == name) return optimizer;
  }
  return absl::InvalidArgumentError(absl::StrCat("--optimizer: '", name, "' is none of sgd, adam, adamw"));
}

v1::OptimizerSpec DefaultOptimizer(const NamedOptimizer& named) {
  v1::OptimizerSpec spec;
  spec.set_kind(named.kind);
  spec.set_learning_rate(named.learning_rate);
  spec.set_weight_decay(named.weight_decay);
  if (named.kind != v1::OPTIMIZER_KIND_SGD) {
    spec.set_beta1(0.9);
    spec.set_beta2(0.999);
    spec.set_epsilon(1e-7);  // Keras' value: the default network is Keras' own example
  }
  return spec;
}

v1::JobSpec DefaultJob(uint64_t train_samples) {
  v1::JobSpec spec;
  spec.set_model_name("mnist");
  spec.set_architecture("cnn");
  *spec.mutable_optimizer() = DefaultOptimizer(kOptimizers[1]);
  spec.set_batch_size(128);
  spec.set_slots(4);
  spec.set_epochs(10);
  spec.set_seed(1);
  spec.set_validation_count(
      static_cast<uint32_t>(std::min(kDefaultValidationCount, train_samples / kDefaultValidationDivisor)));
  spec.set_evaluation_batch_size(500);
  spec.set_normalization(v1::NORMALIZATION_UNIT);
  return spec;
}

absl::Status SetModel(const std::string& model, v1::JobSpec& spec) {
  spec.clear_torchscript_path();
  spec.clear_loss();
  if (IsBuiltInNetwork(model)) {
    spec.set_architecture(model);
    return absl::OkStatus();
  }
  if (!absl::EndsWith(model, ".pt") && !absl::StrContains(model, '/')) {
    return absl::InvalidArgumentError(absl::StrCat("--model: '", model, "' is neither a built-in network (",
                                                   ToAbsl(kBuiltInNetworkNames), ") nor a .pt file"));
  }
  spec.set_architecture("torchscript");
  spec.set_torchscript_path(std::filesystem::absolute(model).string());
  return absl::OkStatus();
}

absl::Status SetLoss(const std::string& loss, v1::JobSpec& spec) {
  spec.set_loss(loss == LossName(v1::LOSS_MSE) ? v1::LOSS_MSE : v1::LOSS_CROSS_ENTROPY);
  const v1::Loss own = OwnLoss(spec.architecture());
  if (!IsBuiltInNetwork(spec.architecture()) || spec.loss() == own) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--loss: the network ", spec.architecture(), " is made for ", ToAbsl(LossName(own))));
}

bool IsDeviceName(absl::string_view name) {
  uint32_t number;
  if (absl::ConsumePrefix(&name, "cuda:")) return absl::SimpleAtoi(name, &number);
  return name == "auto" || name == "cpu" || name == "cuda";
}

absl::Status SetOptimizer(const JobFlags& flags, v1::JobSpec& spec) {
  v1::OptimizerSpec& optimizer = *spec.mutable_optimizer();
  if (flags.optimizer.has_value()) {
    const absl::StatusOr<NamedOptimizer> named = FindOptimizer(*flags.optimizer);
    if (!named.ok()) return named.status();
    if (named->kind != optimizer.kind()) optimizer = DefaultOptimizer(*named);
  }
  if (flags.learning_rate.has_value()) optimizer.set_learning_rate(*flags.learning_rate);
  if (flags.weight_decay.has_value()) optimizer.set_weight_decay(*flags.weight_decay);
  if (flags.momentum.has_value()) {
    if (optimizer.kind() != v1::OPTIMIZER_KIND_SGD) {
      return absl::InvalidArgumentError("--momentum is only for --optimizer sgd");
    }
    optimizer.set_momentum(*flags.momentum);
  }
  return absl::OkStatus();
}

}  // namespace

void AddTrainFlags(CLI::App& app, TrainOptions& options) {
  // Scripts append flags to a list of their own: the last one counts.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);

  JobFlags& job = options.job;
  const auto positive = CLI::Range(1e-12, 1e6);
  const std::string what = "What is trained (with --resume: default from the run that is resumed)";
  app.add_option("--model", job.model,
                 absl::StrCat("built-in network (", ToAbsl(kBuiltInNetworkNames), ") or a TorchScript .pt file"))
      ->group(what)
      ->default_str("cnn");
  app.add_option("--loss", job.loss, "mse trains a .pt file to give its input image back; default the network's own")
      ->group(what)
      ->default_str("cross_entropy")
      ->check(CLI::IsMember({"cross_entropy", "mse"}));
  app.add_option("--model-name", job.model_name, "name under which versions are served")
      ->group(what)
      ->default_str("mnist");
  app.add_option("--epochs", job.epochs, "passes over the training samples")
      ->group(what)
      ->default_str("10")
      ->check(CLI::Range(1u, kEpochsMax));
  app.add_option("--batch-size", job.batch_size, "samples per step, all workers together")
      ->group(what)
      ->default_str("128")
      ->check(CLI::Range(1u, kBatchSamplesMax));
  app.add_option("--slots", job.slots, "equal parts of a batch, shared out among workers; part of the job")
      ->group(what)
      ->default_str("4")
      ->check(CLI::Range(1u, kSlotsMax));
  app.add_option("--optimizer", job.optimizer, "sgd, adam or adamw")
      ->group(what)
      ->default_str("adam")
      ->check(CLI::IsMember({"sgd", "adam", "adamw"}));
  app.add_option("--learning-rate", job.learning_rate, "default 0.001, for sgd 0.01")->group(what)->check(positive);
  app.add_option("--momentum", job.momentum, "sgd only")->group(what)->check(CLI::Range(0.0, 0.999'999));
  app.add_option("--weight-decay", job.weight_decay, "default 0, for adamw 0.01")
      ->group(what)
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--seed", job.seed, "of initial weights, validation split and shuffling")
      ->group(what)
      ->default_str("1");
  app.add_option("--validation-count", job.validation_count,
                 "train samples kept for validation; default 6000, or a tenth of a smaller dataset")
      ->group(what);
  app.add_option("--checkpoint-steps", job.checkpoint_steps, "a checkpoint every N steps besides every epoch")
      ->group(what)
      ->default_str("0");
  app.add_option("--evaluation-batch-size", job.evaluation_batch_size, "samples per evaluation batch")
      ->group(what)
      ->default_str("500")
      ->check(CLI::Range(1u, kBatchSamplesMax));
  app.add_option("--normalize", job.normalize, "unit: pixel / 255; standard: zero mean, unit deviation")
      ->group(what)
      ->default_str("unit")
      ->check(CLI::IsMember({"unit", "standard"}));
  app.add_option("--augment", job.augment,
                 "distort train images: shift=PIXELS,rotate=DEGREES,scale=PART,elastic=PIXELS, each or any, or none")
      ->group(what)
      ->default_str("none");
  app.add_option("--wire", job.wire,
                 "numbers in which gradients and weights travel, of 32, 16, 16 or 8 bits (then every 32 numbers share "
                 "an exponent); "
                 "with each the bits are the same for every cluster, but others than with another")
      ->group(what)
      ->default_str("fp32")
      ->check(CLI::IsMember(NamesOf(kWires)));
  AddTrainingFlags(app, job.training, what);
  AddAsynchronyFlags(app, job.asynchrony, what);

  app.add_option("--data-dir", options.data_dir,
                 "IDX files, CIFAR-10's .bin files or synthetic:train=60000,...; default ~/.cache/millrace/<dataset>")
      ->group("Data");
  app.add_option("--dataset", options.dataset, "mnist, fashion-mnist or the name of a directory of one's own; checked")
      ->group("Data")
      ->default_str("mnist");
  app.add_option("--clean", options.clean,
                 "refuse, drop or keep samples with faults, all or e.g. duplicates=drop (millrace-data --help)")
      ->group("Data")
      ->default_str("keep,labels=refuse");
  app.add_option("--transpose", options.transpose, "exchange rows and columns of images: yes, no or auto")
      ->group("Data")
      ->default_str("auto");

  app.add_option("--workers", options.workers, "worker processes")
      ->group("Cluster")
      ->default_str("2")
      ->check(CLI::Range(1u, kWorkersMax));
  app.add_option("--shards", options.shards, "parameter-server processes")
      ->group("Cluster")
      ->default_str("1")
      ->check(CLI::Range(1u, kShardsMax));
  app.add_option("--data-replicas", options.data_replicas,
                 "data-service processes, each with the whole dataset: workers share them, and go on with another one "
                 "when one is lost")
      ->group("Cluster")
      ->default_str("1")
      ->check(CLI::Range(1u, kDataReplicasMax));
  app.add_option(
         "--backup-workers", options.backup_workers,
         "how many of the workers compute again what the others compute, so that a slow one holds nobody up; the "
         "same bits")
      ->group("Cluster")
      ->capture_default_str()
      ->check(CLI::Range(0u, kWorkersMax - 1));
  app.add_option("--threads", options.threads, "compute threads per worker; other weights come out of another number")
      ->group("Cluster")
      ->capture_default_str()
      ->check(CLI::Range(1u, 256u));
  app.add_option("--keep-checkpoints", options.keep_checkpoints, "how many checkpoints stay")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--sign-key", options.sign_key, "PEM file with an Ed25519 private key that signs exported versions");
  app.add_option("--device", options.device, "what workers compute on: auto, cpu, cuda or cuda:N; auto is a GPU if any")
      ->group("Cluster")
      ->capture_default_str();
  app.add_option("--bin-dir", options.bin_dir, "where the services' programs are; default: beside this one")
      ->group("Cluster");

  app.add_option("--out", options.out, "checkpoints, models, logs; default a new directory under out/")
      ->group("Output");
  app.add_flag("--resume", options.resume, "go on from the last checkpoint in --out")->group("Output");
  app.add_option("--json", options.json, "write the results to this file")->group("Output");
  app.add_option("--log-dir", options.log_dir, "logs of the processes; default <out>/logs")->group("Output");
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->group("Output")
      ->capture_default_str();

  app.add_flag("--serve", options.serve, "go on serving until Ctrl-C")->group("Serving");
  app.add_flag("--no-serving", options.no_serving, "train without a model service")->group("Serving");
  app.add_option("--serve-listen", options.serve_listen, "gRPC address with --serve")
      ->group("Serving")
      ->capture_default_str();
  app.add_option("--serve-http-listen", options.serve_http_listen, "HTTP address with --serve")
      ->group("Serving")
      ->capture_default_str();
}

absl::Status ValidateTrainOptions(const TrainOptions& options) {
  if (options.serve && options.no_serving) {
    return absl::InvalidArgumentError("--serve and --no-serving do not go together");
  }
  if (options.resume && options.out.empty()) {
    return absl::InvalidArgumentError("--resume needs --out: the directory of the run to go on with");
  }
  if (!IsDeviceName(options.device)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device: '", options.device, "' is none of auto, cpu, cuda and cuda:N"));
  }
  for (const std::string& address : {options.serve_listen, options.serve_http_listen}) {
    if (absl::Status status = ParseAddress(address).status(); !status.ok()) return status;
  }
  if (options.job.model_name.has_value()) {
    if (absl::Status status = CheckModelName("--model-name", *options.job.model_name); !status.ok()) return status;
  }
  // The rest is what making the job would find; any size of dataset will do to find it.
  const v1::JobSpec* const no_previous = nullptr;
  JobFlags flags = options.job;
  if (options.resume) {  // whether these fit depends on the run that is resumed
    flags.momentum.reset();
    flags.training = {};
    flags.asynchrony = {};
  }
  return MakeJobSpec(flags, no_previous, /*train_samples=*/UINT32_MAX).status();
}

absl::StatusOr<v1::JobSpec> MakeJobSpec(const JobFlags& flags, const v1::JobSpec* previous, uint64_t train_samples) {
  v1::JobSpec spec = previous != nullptr ? *previous : DefaultJob(train_samples);
  if (flags.model.has_value()) {
    if (absl::Status status = SetModel(*flags.model, spec); !status.ok()) return status;
  }
  if (flags.loss.has_value()) {
    if (absl::Status status = SetLoss(*flags.loss, spec); !status.ok()) return status;
  }
  if (absl::Status status = SetOptimizer(flags, spec); !status.ok()) return status;
  if (flags.model_name.has_value()) spec.set_model_name(*flags.model_name);
  if (flags.slots.has_value()) spec.set_slots(*flags.slots);
  if (flags.batch_size.has_value()) spec.set_batch_size(*flags.batch_size);
  if (flags.epochs.has_value()) spec.set_epochs(*flags.epochs);
  if (flags.seed.has_value()) spec.set_seed(*flags.seed);
  if (flags.validation_count.has_value()) spec.set_validation_count(*flags.validation_count);
  if (flags.checkpoint_steps.has_value()) spec.set_checkpoint_steps(*flags.checkpoint_steps);
  if (flags.evaluation_batch_size.has_value()) spec.set_evaluation_batch_size(*flags.evaluation_batch_size);
  if (flags.normalize.has_value()) {
    spec.set_normalization(*flags.normalize == "standard" ? v1::NORMALIZATION_STANDARD : v1::NORMALIZATION_UNIT);
  }
  if (flags.augment.has_value()) {
    const absl::StatusOr<v1::Augmentation> augmentation = ParseAugmentation(*flags.augment);
    if (!augmentation.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--augment: ", augmentation.status().message()));
    }
    spec.clear_augmentation();
    if (HasEffect(*augmentation)) *spec.mutable_augmentation() = *augmentation;
  }
  if (flags.wire.has_value()) spec.set_wire(ValueOf(kWires, *flags.wire));
  if (spec.validation_count() >= train_samples) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--validation-count: %d leaves nothing of the dataset's %d train samples to train on",
                        spec.validation_count(), train_samples));
  }
  if (absl::Status status = ApplyTrainingFlags(flags.training, spec); !status.ok()) return status;
  if (absl::Status status = ApplyAsynchronyFlags(flags.asynchrony, spec); !status.ok()) return status;
  return spec;
}

}  // namespace millrace
