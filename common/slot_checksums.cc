#include "common/slot_checksums.h"

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace millrace {
namespace {

constexpr char kName[] = "millrace-slot-checksums ";
constexpr char kFirstLine[] = "millrace-slot-checksums 1";
constexpr size_t kDigits = 16;

bool ParseChecksum(absl::string_view text, uint64_t& value) {
  if (text.size() != kDigits) return false;
  value = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return false;
    value = value << 4 | static_cast<uint64_t>(digit);
  }
  return true;
}

// Appends what a line says; false if it does not follow the lines before it.
bool ParseLine(absl::string_view line, SlotChecksums& checksums) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  uint64_t step;
  if (!absl::SimpleAtoi(words[0], &step) || words[0] != absl::StrCat(step)) return false;
  if (step == std::numeric_limits<uint64_t>::max()) return false;
  if (checksums.empty()) {
    checksums.first_step = step;
    checksums.slots = static_cast<uint32_t>(words.size() - 1);
  }
  if (step != checksums.end_step() || words.size() - 1 != checksums.slots) return false;
  for (size_t slot = 1; slot < words.size(); ++slot) {
    if (!ParseChecksum(words[slot], checksums.values.emplace_back())) return false;
  }
  return checksums.slots > 0 && checksums.values.size() <= kSlotChecksumsMax;
}

}  // namespace

std::string SlotChecksumsToText(const SlotChecksums& checksums) {
  std::string text = absl::StrCat(kFirstLine, "\n");
  text.reserve(text.size() + checksums.values.size() * (kDigits + 1) +
               (checksums.end_step() - checksums.first_step) * 21);
  for (uint64_t step = checksums.first_step; step < checksums.end_step(); ++step) {
    absl::StrAppend(&text, step);
    for (const uint64_t value : checksums.Of(step)) absl::StrAppend(&text, " ", absl::Hex(value, absl::kZeroPad16));
    text += '\n';
  }
  return text;
}

absl::StatusOr<SlotChecksums> SlotChecksumsFromText(std::string_view text) {
  SlotChecksums checksums;
  for (uint64_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const absl::string_view line(text.data(), end == std::string_view::npos ? text.size() : end);
    if (number == 1 && absl::StartsWith(line, kName) && line != kFirstLine) {
      return absl::UnimplementedError(absl::StrCat("line 1 is '", line, "'; this build reads '", kFirstLine, "'"));
    }
    const bool whole = end != std::string_view::npos;
    if (!whole || !(number == 1 ? line == kFirstLine : ParseLine(line, checksums))) {
      return absl::DataLossError(absl::StrCat("line ", number, " is damaged"));
    }
    text.remove_prefix(end + 1);
    if (number == 1 && text.empty()) break;
  }
  if (checksums.empty()) return absl::DataLossError("there is no step in it");
  return checksums;
}

}  // namespace millrace
