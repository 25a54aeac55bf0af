// What a version must show before it serves, beyond what its own files say of it (common/model/servable.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "services/model/canary_set.h"
#include "services/model/loaded_version.h"
#include "services/model/predictor.h"

namespace millrace {

// Threads: one at a time.
class VersionExaminer {
 public:
  struct Options {
    std::optional<CanarySet> canary_set = std::nullopt;
    double canary_margin = 0.02;  // as CheckNotWorse takes it
    bool same_signature = false;  // as what serves: requests are to be answered by either
  };
  struct Result {
    LoadResult load;
    std::optional<CanaryScore> score = {};  // if there is a canary set and it fits the model
    bool by_comparison = false;             // refused because of what serves
  };

  VersionExaminer(Options options, LoadVersion load);

  // Loads what lies in `directory`, which must be this version, and measures it on the canary set. May take seconds.
  Result Load(const std::string& directory, const std::string& model, uint64_t version) const;
  // Refuses what was loaded if it is worse than `live`, or cannot be compared with it where it has to be.
  void Compare(const LoadedVersion& live, Result& fresh) const;

 private:
  const Options options_;
  const LoadVersion load_;
};

}  // namespace millrace
