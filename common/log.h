#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

// Log lines to stderr: a constant message, so that it can be searched for, and fields with what varies.
//
//   LogInfo("worker joined", {{"worker", name}, {"step", step}});
//
// as text:  2026-01-31T12:00:00.123Z I millrace-ps: worker joined worker=worker-0 step=812
// as JSON:  {"time":"2026-01-31T12:00:00.123Z","level":"info","service":"millrace-ps","message":"worker
// joined","worker":"worker-0","step":812}
//
// One call writes one line, whole, whatever the strings hold. Any thread, once ConfigureLogging has returned; before
// it, and in tests, the format is text.

enum class LogLevel { kDebug, kInfo, kWarning, kError, kNone };  // kNone, as the least level: nothing is written
enum class LogFormat { kText, kJson };

// A name and a value. Numbers stay numbers in JSON; everything else is a string.
struct LogField {
  LogField(std::string_view name, std::string_view text) : key(name), value(text) {}
  LogField(std::string_view name, const std::string& text) : key(name), value(text) {}
  LogField(std::string_view name, const char* text) : key(name), value(text) {}
  // Abseil's own string_view, where it is not the standard one.
  template <std::same_as<absl::string_view> View>
  requires(!std::same_as<absl::string_view, std::string_view>) LogField(std::string_view name, View text)
      : key(name), value(text) {}
  LogField(std::string_view name, bool truth) : key(name), value(truth ? "true" : "false"), bare(true) {}
  LogField(std::string_view name, std::integral auto number) : key(name), value(absl::StrCat(number)), bare(true) {}
  LogField(std::string_view name, double number);
  LogField(std::string_view name, const absl::Status& status) : key(name), value(status.ToString()) {}
  LogField(std::string_view name, absl::Duration duration) : key(name), value(absl::FormatDuration(duration)) {}

  std::string_view key;
  std::string value;
  bool bare = false;  // written without quotes in JSON
};
using LogFields = std::initializer_list<LogField>;

// Sets the process's name on log lines, the least level written and the format. Call once, before other threads log.
void ConfigureLogging(std::string_view service, LogLevel level, LogFormat format);

void LogDebug(std::string_view message, LogFields fields = {});
void LogInfo(std::string_view message, LogFields fields = {});
void LogWarning(std::string_view message, LogFields fields = {});
void LogError(std::string_view message, LogFields fields = {});

// One line of either format, without the newline. Pure; what the functions above write.
std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view service,
                          std::string_view message, LogFields fields);

}  // namespace millrace
