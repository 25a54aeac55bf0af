// What a mirror of a version source does next: the decision apart from network and disk.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

struct MirroredVersion {
  uint64_t version = 0;
  std::string manifest_sha256;  // the manifest names all other digests: equal ones are equal versions
  std::string signature = {};   // contents of manifest.sig; empty if there is none

  friend bool operator==(const MirroredVersion&, const MirroredVersion&) = default;
};

struct MirrorPlan {
  std::optional<MirroredVersion> fetch = {};
  std::vector<uint64_t> remove = {};
};

// `source`: what should be here, newest first; `local`: what is; `pins`: versions that are pinned, which stay even if
// the source does not name them; `retry_at`: when a version whose fetch has failed may be tried again. A pinned one
// that is missing comes first, then the newest, and one that fails does not keep the others away. Nothing is removed
// before everything else that should be here is, so that a service that starts anew finds what it could serve before.
MirrorPlan PlanMirror(std::span<const MirroredVersion> source, std::span<const MirroredVersion> local,
                      std::span<const uint64_t> pins, const std::map<uint64_t, absl::Time>& retry_at, absl::Time now);

}  // namespace millrace
