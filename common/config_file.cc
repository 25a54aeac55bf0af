#include "common/config_file.h"

#include <yaml-cpp/yaml.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "common/command_line.h"

namespace millrace {
namespace {

constexpr char kConfig[] = "--config";
constexpr char kPrint[] = "--print-config";
constexpr char kValidate[] = "--validate-config";

// The one whose flags were given: `app`, or its subcommand.
const CLI::App& Command(const CLI::App& app) {
  const std::vector<CLI::App*> parsed = app.get_subcommands();
  return parsed.empty() ? app : Command(*parsed.front());
}

bool TakesAFile(const CLI::Option& option) { return option.get_configurable() && !option.get_lnames().empty(); }

bool SetByEnvironment(const CLI::Option& option) {
  const char* value = option.get_envname().empty() ? nullptr : std::getenv(option.get_envname().c_str());
  return value != nullptr && *value != '\0';
}

std::vector<std::string> Values(const YAML::Node& node, const std::string& where) {
  if (node.IsScalar()) return {node.Scalar()};
  std::vector<std::string> values;
  for (const YAML::Node& each : node) {
    if (!node.IsSequence() || !each.IsScalar()) break;
    values.push_back(each.Scalar());
  }
  if (values.empty() || values.size() != node.size()) {
    throw CLI::ConfigError(absl::StrCat(where, " is neither a value nor a list of values"),
                           CLI::ExitCodes::ConfigError);
  }
  return values;
}

std::string YamlLine(const std::string& name, const std::vector<std::string>& values) {
  YAML::Emitter out;
  out << YAML::BeginMap << YAML::Key << name << YAML::Value;
  if (values.size() == 1) {
    out << values.front();
  } else {
    out << YAML::Flow << values;
  }
  out << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

class YamlConfig : public CLI::Config {
 public:
  explicit YamlConfig(const CLI::App& app) : app_(app) {}

  // CLI11 takes what the command line has not set.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const auto file = app_.get_config_ptr()->as<std::string>();
    YAML::Node root;
    try {
      root = YAML::Load(input);
    } catch (const YAML::Exception& error) {
      throw CLI::ConfigError(absl::StrCat(file, ": ", error.what()), CLI::ExitCodes::ConfigError);
    }
    if (!root.IsMap() && !root.IsNull()) {
      throw CLI::ConfigError(absl::StrCat(file, ": not a map of flags"), CLI::ExitCodes::ConfigError);
    }
    const CLI::App& command = Command(app_);
    std::vector<CLI::ConfigItem> items;
    std::set<std::string> seen;
    for (const auto& entry : root) {
      const YAML::Node& key = entry.first;
      const std::string name = key.IsScalar() ? key.Scalar() : "?";
      const std::string where = absl::StrCat(file, ": line ", key.Mark().line + 1, ": ", name);
      const CLI::Option* option = command.get_option_no_throw("--" + name);
      if (option == nullptr || !TakesAFile(*option)) {
        throw CLI::ConfigError(absl::StrCat(where, " is no flag of ", command.get_name()), CLI::ExitCodes::ConfigError);
      }
      if (!seen.insert(name).second) {
        throw CLI::ConfigError(absl::StrCat(where, " is there twice"), CLI::ExitCodes::ConfigError);
      }
      std::vector<std::string> values = Values(entry.second, where);
      if (SetByEnvironment(*option)) continue;
      std::vector<std::string> parents;
      if (&command != &app_) parents.push_back(command.get_name());
      items.push_back({.parents = std::move(parents), .name = name, .inputs = std::move(values)});
    }
    return items;
  }

  std::string to_config(const CLI::App*, bool, bool, std::string) const override {
    std::string text;
    for (const CLI::Option* option : Command(app_).get_options()) {
      if (!TakesAFile(*option)) continue;
      const std::string& name = option->get_lnames().front();
      if (option->count() > 0) {
        absl::StrAppend(&text, YamlLine(name, option->results()));
      } else if (!option->get_default_str().empty()) {
        absl::StrAppend(&text, "# ", name, ": ", option->get_default_str(), "\n");
      }
    }
    return text;
  }

 private:
  const CLI::App& app_;
};

}  // namespace

void AddConfigFlags(CLI::App& app) {
  if (app.get_config_ptr() != nullptr) return;  // it was parsed before
  app.set_config(kConfig, "",
                 "YAML file with flags, such as `log-level: debug`; the environment and the command line win");
  app.config_formatter(std::make_shared<YamlConfig>(app));
  app.add_flag(kPrint)
      ->description("Print the flags that are set as a file for --config, the others' defaults as comments, and exit")
      ->configurable(false);
  app.add_flag(kValidate)->description("Exit once all flags have been checked")->configurable(false);
  for (CLI::App* subcommand : app.get_subcommands([](CLI::App*) { return true; })) {
    if (subcommand->get_allow_extras()) continue;  // it passes on what it does not know
    subcommand->fallthrough();
    subcommand->footer("--config, --print-config and --validate-config as of " + app.get_name());
  }
}

std::optional<int> AnswerConfigFlags(const CLI::App& app) {
  if (app.get_option(kPrint)->count() > 0) {
    std::cout << app.config_to_str() << std::flush;
    return kExitOk;
  }
  if (app.get_option(kValidate)->count() > 0) return kExitOk;
  return std::nullopt;
}

}  // namespace millrace
