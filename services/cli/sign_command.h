#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace millrace {

struct SignOptions {
  std::string key{};                    // PEM file with an Ed25519 private key
  std::vector<std::string> versions{};  // directories <repository>/<model>/<version>
};

void AddSignFlags(CLI::App& app, SignOptions& options);

// Signs the manifest of every version; one line each, on stderr for one that failed, which does not stop the others.
// Returns the exit code.
int RunSign(const SignOptions& options);

}  // namespace millrace
