#include "services/cli/version_choice.h"

#include "CLI/CLI.hpp"

namespace millrace {

void AddVersionFlags(CLI::App& app, VersionChoice& choice) {
  app.add_option("--model", choice.model, "which model; default: the service's own");
  CLI::Option* version =
      app.add_option("--version", choice.version, "exactly this version; default: the one that serves");
  CLI::Option* label =
      app.add_option("--label", choice.label, "stable, the version that serves, or canary, one that is tried beside it")
          ->check(CLI::IsMember({"stable", "canary"}))
          ->excludes(version);
  app.add_option("--key", choice.key,
                 "while a canary is tried: requests of one key get the same version; default: those of one image")
      ->excludes(version)
      ->excludes(label);
}

}  // namespace millrace
