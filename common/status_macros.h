#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expression`, an absl::Status, is not OK.
#define MILLRACE_RETURN_IF_ERROR(expression)                                                        \
  do {                                                                                              \
    if (absl::Status millrace_status = (expression); !millrace_status.ok()) return millrace_status; \
  } while (false)

// Assigns the value of `expression`, an absl::StatusOr<T>, to `target`, or returns its status.
//   MILLRACE_ASSIGN_OR_RETURN(std::string text, ReadFile(path, bytes_max));
#define MILLRACE_ASSIGN_OR_RETURN(target, expression) \
  MILLRACE_ASSIGN_OR_RETURN_IMPL(MILLRACE_CONCAT(millrace_status_or_, __LINE__), target, expression)

#define MILLRACE_ASSIGN_OR_RETURN_IMPL(status_or, target, expression) \
  auto status_or = (expression);                                      \
  if (!status_or.ok()) return std::move(status_or).status();          \
  target = std::move(status_or).value()
#define MILLRACE_CONCAT(a, b) MILLRACE_CONCAT_IMPL(a, b)
#define MILLRACE_CONCAT_IMPL(a, b) a##b
