// What the bits of a run depend on besides job and dataset (DESIGN D1): the first worker's, since all should be alike.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

struct RunFingerprint {
  std::string torch_version;   // "1.13.1"
  std::string cpu_capability;  // "AVX2"
  uint32_t threads = 0;        // of one gradient
  std::string device = "cpu";  // or "cuda:N"
  bool operator==(const RunFingerprint&) const = default;
};

}  // namespace millrace
