// millrace-worker: maps flags to options and runs the service.
#include <unistd.h>

#include <climits>
#include <memory>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/allocator.h"
#include "common/command_line.h"
#include "common/model/device.h"
#include "common/model/runtime.h"
#include "common/service_runtime.h"
#include "common/status_macros.h"
#include "services/worker/worker.h"

namespace {

std::string OwnName() {
  char host[HOST_NAME_MAX + 1] = {};
  gethostname(host, sizeof host - 1);
  return absl::StrCat(host, "-", getpid());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Computes gradients and evaluations for a training job, on leases from its coordinator.");
  millrace::Worker::Options options;
  millrace::ServiceFlags flags{.listen = "", .http_listen = "127.0.0.1:7301"};
  int coordinator_timeout_ms = 60000;
  app.add_option("--coordinator", options.coordinator, "Address of the coordinator (parameter-server shard 0)")
      ->required();
  app.add_option(
      "--name", options.name,
      "This worker's name, unique among the job's live workers; default: that of the host and the process's number");
  app.add_option("--threads", options.threads, "Threads of one gradient; other than 1 gives other bits")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  std::string device = "auto";
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N; auto is a GPU where there is one")
      ->capture_default_str();
  app.add_option("--coordinator-timeout-ms", coordinator_timeout_ms,
                 "Exit 1 after the coordinator was absent this long")
      ->check(CLI::Range(1, 86400000))
      ->capture_default_str();
  millrace::AddServiceFlags(app, flags);
  if (const std::optional<int> exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;
  if (options.name.empty()) options.name = OwnName();
  options.coordinator_timeout = absl::Milliseconds(coordinator_timeout_ms);

  millrace::TuneAllocator();
  millrace::ConfigureTorch(options.threads);
  return millrace::RunService(
      "millrace-worker", flags,
      [&](millrace::ServiceContext& context) -> absl::StatusOr<std::unique_ptr<millrace::Service>> {
        MILLRACE_ASSIGN_OR_RETURN(options.device, millrace::ResolveDevice(device));
        millrace::ConfigureDevice(options.device);
        return std::make_unique<millrace::Worker>(options, &context);
      });
}
