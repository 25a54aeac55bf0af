// Which of several equal replicas of a service a client asks, and when. Pure: the caller says what happened and when.
// Threads: one at a time.
//
// The client prefers replica 0, asks one at a time, and goes on with the next one, in a ring, when that is lost: at
// once, but with back-off when all of them have been lost in turn. When it has left replica 0 it is to look from time
// to time whether that one is there again, and to go back to it then: else a replica that was restarted would have
// nothing to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/backoff.h"
#include "common/random.h"

namespace millrace {

class ReplicaChoice {
 public:
  struct Options {
    size_t replicas = 1;
    // For so long a replica may say nothing to what it was asked. Doubles when none of them does: then they are not
    // silent but slow, and will stay so.
    absl::Duration patience = absl::Seconds(1);
    absl::Duration patience_max = absl::Seconds(16);
    // When to look for replica 0 after it was left. Doubles each time that it is lost again before it has answered.
    absl::Duration return_after = absl::Seconds(1);
    absl::Duration return_after_max = absl::Seconds(30);
    uint64_t seed = RandomSeed();  // of the back-off's jitter
  };

  enum class Loss { kBroken, kSilent, kRefused };

  explicit ReplicaChoice(const Options& options);

  size_t current() const { return current_; }
  // Infinite if there is no other replica to go on with.
  absl::Duration patience() const;
  // When to look whether replica 0 is there again; infinite while it is the current one.
  absl::Time look_at() const { return current_ == 0 ? absl::InfiniteFuture() : look_at_; }
  // None has answered since each was asked in turn.
  bool none_answers() const { return lost_in_a_row_ >= refused_.size(); }
  // What each was lost for last was its refusal.
  bool all_refuse() const;

  // The current one has answered.
  void Answered();
  // The current one broke off, or was silent for too long, or refuses: another one becomes current. Returns how long to
  // wait before that is asked.
  absl::Duration Lost(Loss how, absl::Time now);
  // Replica 0 was looked for. If it is there it becomes current.
  void Looked(bool is_there, absl::Time now);

 private:
  const Options options_;
  Backoff backoff_;
  size_t current_ = 0;
  std::vector<bool> refused_;  // by replica: how it was lost last
  size_t lost_in_a_row_ = 0;
  absl::Duration patience_;
  absl::Duration return_after_;
  absl::Time look_at_ = absl::InfiniteFuture();
};

// The addresses in the order in which the client with this name should prefer them. The names "worker-0", "worker-1"
// ... spread evenly, each over the replicas and those that share one over the others when it is lost; other names by
// hash.
std::vector<std::string> OrderReplicas(std::vector<std::string> addresses, std::string_view client);

}  // namespace millrace
