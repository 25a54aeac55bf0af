// millrace-data: serves the batches of one dataset.

#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "common/command_line.h"
#include "common/service_runtime.h"
#include "common/status_macros.h"
#include "services/data/data_server.h"

namespace {

// What --report does instead of serving.
int PrintReport(const millrace::DataServer::Options& options) {
  const auto load = [&]() -> absl::StatusOr<std::shared_ptr<const millrace::Dataset>> {
    MILLRACE_ASSIGN_OR_RETURN(const millrace::DatasetSource source, millrace::FindDataset(options.data_dir));
    return millrace::Dataset::Load(source, options.dataset);
  };
  const auto dataset = load();
  if (!dataset.ok()) {
    std::fprintf(stderr, "millrace-data: %s\n", std::string(dataset.status().message()).c_str());
    return millrace::ExitCodeFor(dataset.status());
  }
  std::fputs((*dataset)->Report().c_str(), stdout);
  return millrace::kExitOk;
}

// Parses the text of a flag by a function of the dataset's own.
template <typename Parse, typename Value>
std::string ParseFlag(Parse parse, const std::string& text, Value& value) {
  const auto parsed = parse(text);
  if (!parsed.ok()) return std::string(parsed.status().message());
  value = *parsed;
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Serves the batches of a dataset to training workers.", "millrace-data");
  millrace::ServiceFlags flags{.listen = "127.0.0.1:7100", .http_listen = "127.0.0.1:7101"};
  millrace::DataServer::Options options;
  std::string clean, transpose = "auto";
  bool report = false;
  app.add_option("--data-dir", options.data_dir,
                 "directory with IDX files, raw or .gz, named as MNIST's or EMNIST's, or with CIFAR-10's .bin files; "
                 "or synthetic:train=60000,test=10000,seed=1,size=28")
      ->required();
  app.add_option("--classes", options.dataset.classes,
                 "number of classes; 0: the largest train label + 1, every label up to it must occur")
      ->check(CLI::Range(0, 256));
  app.add_option("--clean", clean,
                 "refuse, drop or keep samples with faults; for one kind of fault labels=drop, constant=, conflicts=, "
                 "duplicates=, leaks=, with commas between. Default keep,labels=refuse")
      ->check(
          [&](const std::string& text) { return ParseFlag(millrace::ParseCleanPolicy, text, options.dataset.clean); });
  app.add_option("--transpose", transpose, "exchange rows and columns of images: yes, no or auto (for EMNIST's files)")
      ->check([&](const std::string& text) {
        return ParseFlag(millrace::ParseTranspose, text, options.dataset.transpose);
      });
  app.add_flag("--report", report, "print what is in the dataset and what cleaning found, and exit");
  millrace::AddServiceFlags(app, flags);
  if (const auto exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;
  if (report) return PrintReport(options);
  return millrace::RunService("millrace-data", flags, [&](millrace::ServiceContext& context) {
    return millrace::DataServer::Create(options, context);
  });
}
