// The service that a command speaks to.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/tls.h"

namespace millrace {

struct Target {
  std::string address = "127.0.0.1:8500";
  TlsFiles tls = {};

  // As MakeChannel takes them. For a target that was checked.
  std::shared_ptr<grpc::ChannelCredentials> credentials() const { return MakeChannelCredentials(tls); }
};

// Adds --target, with `help`, and --tls-cert, --tls-key and --tls-ca. `target` must outlive the parsing.
void AddTargetFlags(CLI::App& app, Target& target, const std::string& help);

// Nothing if the command can go on; else the code to exit with, after one line on stderr that names the flag:
// kExitUsage for what is no address, the code of CheckTlsFiles' error for files.
std::optional<int> RefuseTarget(const Target& target);

}  // namespace millrace
