#include "services/cli/sign_command.h"

#include <cstdio>
#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/model/manifest.h"
#include "common/signing.h"
#include "common/status_macros.h"
#include "services/cli/image_files.h"

namespace millrace {
namespace {

// The line to print.
absl::StatusOr<std::string> SignVersion(const SigningKey& key, const std::filesystem::path& version) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(version / kManifestFile, kManifestBytesMax));
  MILLRACE_ASSIGN_OR_RETURN(const ServableManifest manifest, ManifestFromJson(json));
  MILLRACE_ASSIGN_OR_RETURN(const std::string signature, key.Sign(json));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(version / kSignatureFile, signature + "\n"));
  return absl::StrCat("signed ", manifest.model, " version ", manifest.version);
}

}  // namespace

void AddSignFlags(CLI::App& app, SignOptions& options) {
  app.add_option("--key", options.key, "PEM file with an Ed25519 private key (openssl genpkey -algorithm ed25519)")
      ->required();
  app.add_option("VERSION", options.versions, "directories <repository>/<model>/<version>")->required();
}

int RunSign(const SignOptions& options) {
  const absl::StatusOr<SigningKey> key = SigningKey::Read(options.key);
  if (!key.ok()) {
    std::fprintf(stderr, "millrace: --key: %s\n", std::string(key.status().message()).c_str());
    return ExitCodeFor(key.status());
  }
  return ForEachFile(options.versions, [&](const std::string& version) { return SignVersion(*key, version); });
}

}  // namespace millrace
