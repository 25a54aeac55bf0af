#include "services/cli/fault_schedule.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/random.h"
#include "services/cli/local_cluster.h"

namespace millrace {
namespace {

constexpr uint32_t kGuestsMax = 2;
constexpr char kAnyData[] = "data";  // until a replica is drawn
constexpr absl::Duration kPauseMin = absl::Milliseconds(300);
constexpr absl::Duration kPauseMax = absl::Milliseconds(2000);

class Generator {
 public:
  explicit Generator(const FaultScheduleOptions& options) : options_(options), random_(options.seed, 0) {}

  std::vector<Fault> Make() {
    std::vector<Fault> faults;
    while (faults.size() < options_.faults) {
      std::vector<Fault> deck = Deck();
      deck.resize(std::min<size_t>(deck.size(), options_.faults - faults.size()));
      Shuffle(deck);
      faults.insert(faults.end(), deck.begin(), deck.end());
    }
    uint64_t last = 0;
    for (size_t i = 0; i < faults.size(); ++i) {
      // Spread over the job with some jitter, none right at its end.
      const double place = (static_cast<double>(i) + 0.2 + 0.6 * random_.NextUniform()) / (faults.size() + 1.0);
      last = faults[i].step = std::max(last + 1, static_cast<uint64_t>(place * static_cast<double>(options_.steps)));
      Complete(faults[i]);
    }
    return faults;
  }

 private:
  uint32_t Below(uint32_t bound) { return random_.NextUint32() % bound; }

  void Shuffle(std::vector<Fault>& faults) {
    for (size_t i = faults.size(); i > 1; --i) std::swap(faults[i - 1], faults[Below(static_cast<uint32_t>(i))]);
  }

  // One fault of every kind for every part. A short schedule is the deck's beginning: kills, guests, then the rest in
  // random order.
  std::vector<Fault> Deck() {
    std::vector<std::string> parts = {kAnyData, LocalCluster::WorkerName(Below(options_.workers))};
    for (uint32_t shard = 0; shard < options_.shards; ++shard) parts.push_back(LocalCluster::ShardName(shard));
    std::vector<Fault> deck, others;
    for (const std::string& part : parts) {
      deck.push_back({.kind = Fault::Kind::kKill, .part = part});
      others.push_back({.kind = Fault::Kind::kStop, .part = part});
      others.push_back({.kind = Fault::Kind::kRestart, .part = part});
    }
    Shuffle(others);
    deck.insert(deck.end(), 2, {.kind = Fault::Kind::kJoin});
    deck.insert(deck.end(), others.begin(), others.end());
    return deck;
  }

  // What depends on the faults before it.
  void Complete(Fault& fault) {
    if (fault.part == kAnyData && options_.data_replicas > 1) {
      fault.part = LocalCluster::DataName(Below(options_.data_replicas));
    }
    if (fault.kind == Fault::Kind::kStop) fault.pause = kPauseMin + (kPauseMax - kPauseMin) * random_.NextUniform();
    if (fault.kind != Fault::Kind::kJoin) return;
    const bool leave = guests_.size() == kGuestsMax || (!guests_.empty() && Below(2) == 0);
    if (leave) {
      fault.kind = Fault::Kind::kLeave;
      fault.part = guests_.front();
      guests_.erase(guests_.begin());
    } else {
      fault.part = absl::StrCat("guest-", next_guest_++);
      guests_.push_back(fault.part);
    }
  }

  const FaultScheduleOptions options_;
  PhiloxStream random_;
  std::vector<std::string> guests_;  // that are there, the longest first
  uint32_t next_guest_ = 0;
};

}  // namespace

std::vector<Fault> MakeFaultSchedule(const FaultScheduleOptions& options) { return Generator(options).Make(); }

std::string FaultName(Fault::Kind kind) {
  switch (kind) {
    case Fault::Kind::kKill:
      return "SIGKILL";
    case Fault::Kind::kStop:
      return "SIGSTOP";
    case Fault::Kind::kRestart:
      return "restart";
    case Fault::Kind::kJoin:
      return "join";
    case Fault::Kind::kLeave:
      return "leave";
  }
  return "unknown";
}

std::string DescribeFault(const Fault& fault) {
  std::string text = absl::StrCat("step ", fault.step, ": ", FaultName(fault.kind), " ", fault.part);
  if (fault.kind == Fault::Kind::kStop) {
    absl::StrAppendFormat(&text, " for %.1f s", absl::ToDoubleSeconds(fault.pause));
  }
  return text;
}

}  // namespace millrace
