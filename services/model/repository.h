// What lies in a model repository: <root>/<model>/<version>/, the layout that TF Serving, Triton and KServe share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// A complete version: its manifest is there, which exporters write last.
struct AvailableVersion {
  uint64_t version = 0;
  // Changes whenever a file of the version is replaced, resized or written to, so that a version that was refused is
  // looked at again when, and only when, something about it is new.
  uint64_t identity = 0;

  friend bool operator==(const AvailableVersion&, const AvailableVersion&) = default;
};

struct RepositoryListing {
  std::map<std::string, std::vector<AvailableVersion>> models;  // by name; versions ascending
  std::vector<absl::Status> faults;  // models that could not be read; they are absent from `models`
};

// Reads directory entries only, no file's contents. Passed over in silence: names that start with '.' (exports in
// progress), what IsModelName (common/model_name.h) says no to, version names that are not a number in plain decimal
// from 1 (so "007" and "latest" too), directories without a manifest. NOT_FOUND if there is no such directory (yet),
// FAILED_PRECONDITION if it is not a directory, another code if it cannot be read.
absl::StatusOr<RepositoryListing> ListRepository(const std::filesystem::path& root);

std::filesystem::path VersionDirectory(const std::filesystem::path& root, const std::string& model, uint64_t version);

}  // namespace millrace
