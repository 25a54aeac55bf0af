// millrace-data: serves the batches of one dataset.

#include "CLI/CLI.hpp"
#include "common/command_line.h"
#include "common/service_runtime.h"
#include "services/data/data_server.h"

int main(int argc, char** argv) {
  CLI::App app("Serves the batches of a dataset in MNIST's format to training workers.", "millrace-data");
  millrace::ServiceFlags flags{.listen = "127.0.0.1:7100", .http_listen = "127.0.0.1:7101"};
  millrace::DataServer::Options options;
  app.add_option("--data-dir", options.data_dir, "directory with the four IDX files, raw or .gz")->required();
  app.add_option("--classes", options.classes,
                 "number of classes; 0: the largest train label + 1, every label up to it must occur")
      ->check(CLI::Range(0, 256));
  millrace::AddServiceFlags(app, flags);
  if (const auto exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;
  return millrace::RunService("millrace-data", flags, [&](millrace::ServiceContext& context) {
    return millrace::DataServer::Create(options, context);
  });
}
