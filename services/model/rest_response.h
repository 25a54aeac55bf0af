// What the REST protocols have in common: answers and errors as JSON, paths, methods.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/http_server.h"
#include "services/model/rest_json.h"

namespace millrace {

HttpResponse RestAnswer(const RestJson& json);

// {"error": "..."}
HttpResponse RestError(int http_status, std::string_view message);
// With the HTTP status that rest_api.h gives it and, if it has a retry hint and fits, Retry-After.
HttpResponse RestError(const absl::Status& status);

absl::Status NothingAt(const HttpRequest& request);
// 405 unless it is the one.
std::optional<HttpResponse> UnlessMethod(const HttpRequest& request, const char* method);
// The header Millrace-Key (rest_api.h), else "".
std::string_view KeyOf(const HttpRequest& request);
// "/v2/models" is "v2" and "models".
std::vector<std::string> PathParts(std::string_view path);

}  // namespace millrace
