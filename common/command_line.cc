#include "common/command_line.h"

#include <cctype>
#include <iostream>
#include <string>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "common/config_file.h"
#include "common/version.h"

namespace millrace {
namespace {

std::string EnvironmentName(const std::string& flag) {
  std::string name = "MILLRACE_";
  for (const unsigned char c : flag) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

void AttachEnvironment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || !option->get_configurable()) continue;
    option->envname(EnvironmentName(option->get_lnames().front()));
  }
  for (CLI::App* subcommand : app.get_subcommands([](CLI::App*) { return true; })) AttachEnvironment(*subcommand);
}

// What the person typed, "millrace train".
std::string CommandName(const CLI::App& app) {
  std::string name = app.get_name();
  for (const CLI::App* subcommand : app.get_subcommands()) absl::StrAppend(&name, " ", CommandName(*subcommand));
  return name;
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  if (app.get_name().empty() && argc > 0) app.name(BaseName(argv[0]));
  if (app.get_version_ptr() == nullptr) {
    app.set_version_flag("--version", absl::StrCat(app.get_name(), " ", std::string(Version())),
                         "Print the version and exit");
  }
  AddConfigFlags(app);
  AttachEnvironment(app);
  try {
    app.parse(argc, argv);
    return AnswerConfigFlags(app);
  } catch (const CLI::Success& help_or_version) {
    app.exit(help_or_version, std::cout, std::cerr);
    std::cout.flush();
    return kExitOk;
  } catch (const CLI::RuntimeError& done) {
    return done.get_exit_code();
  } catch (const CLI::Error& error) {
    const std::string command = CommandName(app);
    std::cerr << command << ": " << OneLine(error.what()) << " (see " << command << " --help)" << std::endl;
    const bool in_file = dynamic_cast<const CLI::ConfigError*>(&error) != nullptr ||
                         dynamic_cast<const CLI::FileError*>(&error) != nullptr;
    return in_file ? kExitBadConfiguration : kExitUsage;
  }
}

int ExitCodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kDataLoss:
      return kExitBadConfiguration;
    default:
      return kExitFailure;
  }
}

}  // namespace millrace
