#include "common/text_format.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace millrace {

std::string FormatClock(absl::Duration duration) {
  if (duration < absl::ZeroDuration() || duration == absl::InfiniteDuration()) return "-:--";
  const int64_t seconds = absl::ToInt64Seconds(duration);
  if (seconds < 3600) return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
  return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

std::string FormatCount(uint64_t count) {
  const std::string digits = absl::StrCat(count);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string FormatPercent(double fraction) { return absl::StrFormat("%.2f %%", 100 * fraction); }

std::string FormatState(absl::string_view name) { return absl::AsciiStrToLower(absl::StripPrefix(name, "STATE_")); }

std::string FitToWidth(absl::string_view text, size_t columns) {
  if (text.size() <= columns) return std::string(text);
  constexpr absl::string_view kEllipsis = "...";
  if (columns <= kEllipsis.size()) return std::string(text.substr(0, columns));
  return absl::StrCat(text.substr(0, columns - kEllipsis.size()), kEllipsis);
}

absl::string_view MessageOfLogLine(absl::string_view line) {
  constexpr absl::string_view kProgram = "millrace-";
  constexpr absl::string_view kCode = " code=";
  const size_t program = line.find(kProgram);
  const size_t colon = program == line.npos ? line.npos : line.find(": ", program);
  // A time and a level are 27 characters.
  if (colon == line.npos || program > 27) return line;
  line.remove_prefix(colon + 2);
  if (const size_t code = line.rfind(kCode); code != line.npos && line.find(' ', code + 1) == line.npos) {
    line = line.substr(0, code);
  }
  return line;
}

std::string FormatTable(const std::vector<std::pair<std::string, std::string>>& rows) {
  size_t width = 0;
  for (const auto& [name, value] : rows) width = std::max(width, name.size());
  std::string table;
  for (const auto& [name, value] : rows) {
    absl::StrAppend(&table, "  ", name, std::string(width - name.size() + 2, ' '), value, "\n");
  }
  return table;
}

std::string FormatColumns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.empty() ? 0 : rows.front().size());
  for (const std::vector<std::string>& row : rows) {
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], row.at(i).size());
  }
  std::string text;
  for (const std::vector<std::string>& row : rows) {
    std::string line;
    for (size_t i = 0; i < widths.size(); ++i) {
      absl::StrAppend(&line, row[i], std::string(widths[i] - row[i].size() + 2, ' '));
    }
    absl::StripTrailingAsciiWhitespace(&line);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace millrace
