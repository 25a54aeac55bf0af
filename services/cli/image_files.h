// Commands that take files, one line each.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

inline constexpr size_t kImageFileBytesMax = 16 << 20;

// Prints what `work` says of each file on stdout; on stderr for a file that failed, which does not stop the others.
// Returns the exit code: kExitFailure if any failed.
int ForEachFile(const std::vector<std::string>& files,
                const std::function<absl::StatusOr<std::string>(const std::string& file)>& work);

}  // namespace millrace
