#pragma once

#include <optional>

#include "absl/time/time.h"

namespace millrace {

// Decides when a part of the cluster that died is started again. A part that dies soon after its start, several times
// in a row, will not get better by itself: it is given up. Any longer life clears the count. Pure; not thread-safe.
class RestartPolicy {
 public:
  struct Options {
    absl::Duration initial_delay = absl::Milliseconds(100);  // doubles with every early death in a row
    absl::Duration delay_max = absl::Seconds(1);
    absl::Duration early = absl::Seconds(5);  // a life shorter than this is an early death
    int early_deaths_max = 5;
  };

  RestartPolicy() = default;
  explicit RestartPolicy(Options options) : options_(options) {}

  void OnStart(absl::Time now) { started_ = now; }

  // When to start it again; nothing if it is given up.
  std::optional<absl::Time> OnDeath(absl::Time now);

  int early_deaths() const { return early_deaths_; }

 private:
  Options options_;
  absl::Time started_ = absl::InfinitePast();
  int early_deaths_ = 0;  // in a row
};

}  // namespace millrace
