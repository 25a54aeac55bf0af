#include "services/cli/image_files.h"

#include <cstdio>

#include "common/command_line.h"

namespace millrace {

int ForEachFile(const std::vector<std::string>& files,
                const std::function<absl::StatusOr<std::string>(const std::string& file)>& work) {
  int exit_code = kExitOk;
  for (const std::string& file : files) {
    const absl::StatusOr<std::string> line = work(file);
    if (line.ok()) {
      std::printf("%s\n", line->c_str());
      std::fflush(stdout);
    } else {
      std::fprintf(stderr, "millrace: %s: %s\n", file.c_str(), std::string(line.status().message()).c_str());
      exit_code = kExitFailure;
    }
  }
  return exit_code;
}

}  // namespace millrace
