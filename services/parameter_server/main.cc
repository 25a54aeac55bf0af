#include <optional>
#include <string>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Error.hpp"
#include "CLI/Formatter.hpp"
#include "common/allocator.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/model/runtime.h"
#include "common/planted_bug.h"
#include "common/service_runtime.h"
#include "services/parameter_server/parameter_server.h"

static_assert(millrace::kPlantedBug == millrace::PlantedBug::kNone, "this program is for the simulator");

int main(int argc, char** argv) {
  millrace::ServiceFlags flags{.listen = "127.0.0.1:7200", .http_listen = "127.0.0.1:7201"};
  millrace::ParameterServerOptions options;
  CLI::App app("Holds a shard of the parameters and applies the steps; shard 0 also coordinates the job.");
  app.add_option("--shard", options.shard, "Which shard this is, from 0")->capture_default_str();
  app.add_option("--num-shards", options.num_shards, "How many shards the job has")->capture_default_str();
  app.add_option("--job", options.job_file, "Shard 0: the job, a JobSpec in protobuf text format");
  app.add_option("--data", options.data_addresses,
                 "Shard 0: address of the data service; of several replicas, with commas between");
  app.add_option("--output", options.output_dir, "Shard 0: directory for checkpoints/ and models/");
  app.add_flag("--resume", options.resume, "Shard 0: go on from the newest checkpoint in --output");
  app.add_option("--keep-checkpoints", options.keep_checkpoints, "Shard 0: how many checkpoints stay")
      ->capture_default_str();
  app.add_option("--backup-workers", options.backup_workers,
                 "Shard 0: how many workers may compute what others are computing, instead of work of their own")
      ->capture_default_str();
  app.add_option("--sign-key", options.signing_key_file,
                 "Shard 0: PEM file with an Ed25519 private key that signs exported versions");
  app.add_option("--coordinator", options.coordinator_address, "Other shards: address of shard 0");
  app.add_option("--advertise", options.advertise, "Address under which others reach this shard; default: --listen");
  app.add_flag("--exit-when-done", options.exit_when_done,
               "End when the job is over, with its success or failure; otherwise the server goes on answering");
  millrace::AddServiceFlags(app, flags);
  app.callback([&] {
    const absl::Status valid = millrace::ValidateParameterServerOptions(options);
    if (!valid.ok()) throw CLI::ValidationError(std::string(valid.message()));
  });
  if (std::optional<int> exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;

  millrace::TuneAllocator();
  return millrace::RunService("millrace-ps", flags, [&](millrace::ServiceContext& context) {
    millrace::ConfigureTorch(1);
    return millrace::ParameterServer::Create(options, millrace::RealClock(), context);
  });
}
