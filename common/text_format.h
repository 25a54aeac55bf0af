#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

// How numbers and tables look in the terminal. Pure functions.

// "0:07", "12:34", "1:02:03"; fractions are dropped, negative and infinite durations are "-:--".
std::string FormatClock(absl::Duration duration);

// "1,234,567"
std::string FormatCount(uint64_t count);

// 0.98412 -> "98.41 %"
std::string FormatPercent(double fraction);

// "STATE_TRAINING", as protobuf names a value, -> "training"
std::string FormatState(absl::string_view name);

// At most `columns` columns of `text`, the rest replaced by an ellipsis. Counts bytes: for ASCII text.
std::string FitToWidth(absl::string_view text, size_t columns);

// What a service's text log line says, without time, level, name and the code at the end:
// "2026-01-31T12:00:00.123Z E millrace-ps: no such file code=NOT_FOUND" -> "no such file". Any other line is left as it
// is, but for a program's name that it may begin with ("millrace-ps: ").
absl::string_view MessageOfLogLine(absl::string_view line);

// One line per row: two spaces, the name padded to the longest, two spaces, the value.
std::string FormatTable(const std::vector<std::pair<std::string, std::string>>& rows);

// One line per row, all with as many cells as the first: each column is as wide as its widest cell, two spaces stand
// between columns, and none at the end of a line.
std::string FormatColumns(const std::vector<std::vector<std::string>>& rows);

}  // namespace millrace
