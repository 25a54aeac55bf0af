#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/data.pb.h"
#include "millrace/v1/job.pb.h"
#include "services/cli/asynchrony_flags.h"
#include "services/cli/training_flags.h"

namespace CLI {
class App;
}

namespace millrace {

// The flags that say what is trained. Unset ones are taken from the run that is resumed, else they have defaults.
struct JobFlags {
  std::optional<std::string> model;  // a built-in network or a .pt file
  std::optional<std::string> loss;   // cross_entropy, mse
  std::optional<std::string> model_name;
  std::optional<uint32_t> slots;
  std::optional<uint32_t> batch_size;
  std::optional<uint32_t> epochs;
  std::optional<std::string> optimizer;  // sgd, adam, adamw
  std::optional<double> learning_rate;
  std::optional<double> momentum;
  std::optional<double> weight_decay;
  std::optional<uint64_t> seed;
  std::optional<uint32_t> validation_count;
  std::optional<uint64_t> checkpoint_steps;
  std::optional<uint32_t> evaluation_batch_size;
  std::optional<std::string> normalize;  // unit, standard
  std::optional<std::string> augment;    // as ParseAugmentation takes it
  std::optional<std::string> wire;       // fp32, bf16, fp16, mxint8
  TrainingFlags training;
  AsynchronyFlags asynchrony;
};

// Everything `millrace train` can be told.
struct TrainOptions {
  JobFlags job;

  std::optional<std::string> data_dir;
  std::optional<std::string> dataset;
  std::optional<std::string> clean;      // as millrace-data has it
  std::optional<std::string> transpose;  // as millrace-data has it
  std::optional<uint32_t> workers;
  std::optional<uint32_t> shards;
  std::optional<uint32_t> data_replicas;
  uint32_t threads = 1;         // intra-op threads per worker
  std::string device = "auto";  // of the workers: auto, cpu, cuda or cuda:N

  std::string out;      // empty: a new directory under out/
  std::string log_dir;  // empty: <out>/logs
  bool resume = false;
  bool no_serving = false;
  bool serve = false;
  std::string serve_listen = "127.0.0.1:8500";
  std::string serve_http_listen = "127.0.0.1:8501";
  std::string json;  // empty: no JSON
  uint32_t keep_checkpoints = 3;
  uint32_t backup_workers = 0;
  std::string sign_key{};  // PEM file; empty: exported versions are not signed
  std::string bin_dir;     // empty: where this program lies
  std::string log_level = "info";
};

// Declares the flags on `app`, bound to `options`, which must outlive the parsing.
void AddTrainFlags(CLI::App& app, TrainOptions& options);

// What no single flag can know. INVALID_ARGUMENT names the flags that do not go together.
absl::Status ValidateTrainOptions(const TrainOptions& options);

// The job that the flags describe: each flag that is set, else `previous` (the job that is resumed; null for a new
// one), else the default. `train_samples` is the number of samples in the train files. Pure, except that a .pt path is
// made absolute. INVALID_ARGUMENT names the flag.
absl::StatusOr<v1::JobSpec> MakeJobSpec(const JobFlags& flags, const v1::JobSpec* previous, uint64_t train_samples);

}  // namespace millrace
