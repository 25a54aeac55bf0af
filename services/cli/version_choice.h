// Which version of which model a command asks.
#pragma once

#include <cstdint>
#include <string>

namespace CLI {
class App;
}

namespace millrace {

struct VersionChoice {
  std::string model{};   // empty: the service's default
  uint64_t version = 0;  // 0: the one that serves, or that `label` names
  std::string label{};
  std::string key{};

  // Of a PredictRequest or ExplainRequest.
  template <typename Request>
  void Fill(Request& request) const {
    request.set_model(model);
    request.set_version(version);
    request.set_label(label);
    request.set_key(key);
  }
};

// Adds --model, --version, --label and --key. `choice` must outlive the parsing.
void AddVersionFlags(CLI::App& app, VersionChoice& choice);

}  // namespace millrace
