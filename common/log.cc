#include "common/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cmath>
#include <memory>

#include "absl/time/clock.h"
#include "common/strings.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

struct LogTarget {
  LogTarget(std::string_view service_name, LogLevel least, LogFormat line_format, const LogTarget* replaced_target)
      : service(service_name), least_level(least), format(line_format), replaced(replaced_target) {
    sink.set_pattern("%v");
  }
  const std::string service;
  const LogLevel least_level;
  const LogFormat format;
  const LogTarget* const replaced;  // kept, since a thread may be writing to it
  spdlog::sinks::stderr_sink_mt sink;
};

// The one piece of global state we allow: every line of a process goes to one place.
std::atomic<LogTarget*>& Target() {
  static std::atomic<LogTarget*> target{new LogTarget("", LogLevel::kInfo, LogFormat::kText, nullptr)};
  return target;
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kNone:
      break;
  }
  return spdlog::level::off;
}

void Write(LogLevel level, std::string_view message, LogFields fields) {
  LogTarget& target = *Target().load(std::memory_order_acquire);
  if (level < target.least_level) return;
  const std::string line = FormatLogLine(target.format, absl::Now(), level, target.service, message, fields);
  target.sink.log(spdlog::details::log_msg("", SpdlogLevel(level), line));
  target.sink.flush();
}

// A JSON string; bytes that are not UTF-8 become U+FFFD.
std::string Quoted(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool NeedsQuotes(std::string_view text) {
  if (text.empty()) return true;
  for (const unsigned char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7f) return true;
  }
  return false;
}

// A message without what would break the line or the terminal.
std::string OneLine(std::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  }
  return line;
}

std::string_view JsonLevel(LogLevel level) {
  static constexpr std::string_view kNames[] = {"debug", "info", "warning", "error"};
  return kNames[static_cast<int>(level)];
}

}  // namespace

LogField::LogField(std::string_view name, double number)
    : key(name), value(absl::StrCat(number)), bare(std::isfinite(number)) {}

void ConfigureLogging(std::string_view service, LogLevel level, LogFormat format) {
  const LogTarget* replaced = Target().load(std::memory_order_acquire);
  Target().store(new LogTarget(service, level, format, replaced), std::memory_order_release);
}

std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view service,
                          std::string_view message, LogFields fields) {
  const std::string timestamp = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
  if (format == LogFormat::kJson) {
    std::string line = absl::StrCat("{\"time\":\"", timestamp, "\",\"level\":\"", ToAbsl(JsonLevel(level)),
                                    "\",\"service\":", Quoted(service), ",\"message\":", Quoted(message));
    for (const LogField& field : fields) {
      absl::StrAppend(&line, ",", Quoted(field.key), ":", field.bare ? field.value : Quoted(field.value));
    }
    return line + "}";
  }
  std::string line = absl::StrCat(timestamp, " ", std::string(1, "DIWE"[static_cast<int>(level)]), " ", ToAbsl(service),
                                  service.empty() ? "" : ": ", OneLine(message));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", ToAbsl(field.key), "=", NeedsQuotes(field.value) ? Quoted(field.value) : field.value);
  }
  return line;
}

void LogDebug(std::string_view message, LogFields fields) { Write(LogLevel::kDebug, message, fields); }
void LogInfo(std::string_view message, LogFields fields) { Write(LogLevel::kInfo, message, fields); }
void LogWarning(std::string_view message, LogFields fields) { Write(LogLevel::kWarning, message, fields); }
void LogError(std::string_view message, LogFields fields) { Write(LogLevel::kError, message, fields); }

}  // namespace millrace
