#include "common/replica_choice.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/hashing.h"
#include "common/strings.h"

namespace millrace {
namespace {

// The number that the name ends with, or else a hash.
uint64_t NumberOf(std::string_view name) {
  size_t digits = 0;
  while (digits < name.size() && absl::ascii_isdigit(static_cast<unsigned char>(name[name.size() - 1 - digits]))) {
    ++digits;
  }
  uint64_t number;
  return absl::SimpleAtoi(ToAbsl(name.substr(name.size() - digits)), &number) ? number : Checksum64(name);
}

}  // namespace

ReplicaChoice::ReplicaChoice(const Options& options)
    : options_(options),
      backoff_(Backoff::kDefaultInitial, Backoff::kDefaultMax, options.seed),
      refused_(options.replicas),
      patience_(options.patience),
      return_after_(options.return_after) {}

absl::Duration ReplicaChoice::patience() const { return refused_.size() == 1 ? absl::InfiniteDuration() : patience_; }

bool ReplicaChoice::all_refuse() const {
  return std::ranges::all_of(refused_, [](bool refused) { return refused; });
}

void ReplicaChoice::Answered() {
  lost_in_a_row_ = 0;
  backoff_.Reset();
  refused_[current_] = false;
  if (current_ == 0) return_after_ = options_.return_after;
}

absl::Duration ReplicaChoice::Lost(Loss how, absl::Time now) {
  refused_[current_] = how == Loss::kRefused;
  if (current_ == 0) {
    look_at_ = now + return_after_;
    return_after_ = std::min(2 * return_after_, options_.return_after_max);
  }
  current_ = (current_ + 1) % refused_.size();
  if (++lost_in_a_row_ % refused_.size() != 0) return absl::ZeroDuration();
  if (how == Loss::kSilent) patience_ = std::min(2 * patience_, options_.patience_max);
  return backoff_.Next();
}

void ReplicaChoice::Looked(bool is_there, absl::Time now) {
  if (is_there) current_ = 0;
  look_at_ = now + options_.return_after;
}

std::vector<std::string> OrderReplicas(std::vector<std::string> addresses, std::string_view client) {
  if (addresses.empty()) return addresses;
  const uint64_t number = NumberOf(client);
  const uint64_t count = addresses.size();
  const auto rotate = [](auto begin, auto end, uint64_t by) {
    std::rotate(begin, begin + static_cast<std::ptrdiff_t>(by), end);
  };
  rotate(addresses.begin(), addresses.end(), number % count);
  if (count > 2) rotate(addresses.begin() + 1, addresses.end(), number / count % (count - 1));
  return addresses;
}

}  // namespace millrace
