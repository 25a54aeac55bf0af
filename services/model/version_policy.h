// Which version to load next: a pure function of what is there, what serves and what has failed.
//
// Rules: a pinned version, and nothing else, while there is one; else the newest version that is newer than the one
// that serves, and than a candidate that is tried beside it, and never an older one, so versions never go backwards by
// themselves; a version that was refused is not tried again until its files change (or, if it was only worse than
// another, it is pinned), and meanwhile the next newest has its turn; one that could not be read for reasons of the
// storage is tried again when its time has come. A model that an operator has unloaded gets nothing; when its version
// is to be loaded again, the one that serves counts as new. What is missing from the repository (versions cleaned up,
// storage lost) never makes anything happen: nothing is unloaded without a successor. When there is nothing else to do,
// versions that are wanted on standby are loaded: those before the one that serves, the newest first.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "services/model/repository.h"

namespace millrace {

// The last attempt to load a version, which failed.
struct FailedLoad {
  uint64_t identity = 0;  // AvailableVersion::identity of what was tried
  absl::Time retry_at;    // InfiniteFuture: refused, only a changed identity helps
  int attempts = 1;
  bool by_comparison = false;  // worse than what served: a pin overrules it
};

struct ModelState {
  std::string model;
  std::vector<AvailableVersion> available;  // ascending
  uint64_t serving = 0;                     // 0: none yet
  uint64_t candidate = 0;                   // that is tried beside it; 0: none
  std::vector<uint64_t> standby = {};       // that stay loaded beside it
  size_t standby_wanted = 0;                // how many are to
  uint64_t pinned = 0;                      // what is to serve whatever is pushed; 0: the newest
  std::map<uint64_t, FailedLoad> failed;    // by version
  bool unloaded = false;                    // by an operator
  bool reload = false;                      // what serves is to be loaded again, unless there is a newer one
  uint64_t last_turn = 0;                   // when this model was last chosen, as a count of all choices; 0: never
};

struct LoadAction {
  std::string model;
  AvailableVersion version;
  bool standby = false;  // it is not to serve

  friend bool operator==(const LoadAction&, const LoadAction&) = default;
};

// Nothing to serve if every model is up to date. Models that serve nothing come first, then those whose last turn is
// longest past, so that one busy model cannot keep the others from theirs.
std::optional<LoadAction> NextLoad(std::span<const ModelState> models, absl::Time now);

// The next version to have on standby. Nothing if every model has enough, or has no more to load.
std::optional<LoadAction> NextStandby(std::span<const ModelState> models, absl::Time now);

// The wait before a failed attempt that says nothing about the version is repeated: 1 s, doubled up to 1 min.
absl::Duration RetryDelay(int attempts);

}  // namespace millrace
