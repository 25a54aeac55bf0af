#include "services/model/rest_response.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/strings.h"
#include "services/model/retry_hint.h"

namespace millrace {
namespace {

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string Dump(const RestJson& json) { return json.dump(-1, ' ', false, RestJson::error_handler_t::replace); }

}  // namespace

HttpResponse RestAnswer(const RestJson& json) { return {.body = Dump(json)}; }

HttpResponse RestError(int http_status, std::string_view message) {
  return {.status = http_status, .body = Dump({{"error", message}})};
}

HttpResponse RestError(const absl::Status& status) {
  HttpResponse response = RestError(HttpStatusOf(status.code()), ToStd(status.message()));
  if (const std::optional<absl::Duration> after = RetryAfter(status); after && response.status != 504) {
    response.headers["Retry-After"] = absl::StrCat(absl::ToInt64Seconds(absl::Ceil(*after, absl::Seconds(1))));
  }
  return response;
}

absl::Status NothingAt(const HttpRequest& request) {
  return absl::NotFoundError(absl::StrCat("there is nothing at ", ToAbsl(request.path)));
}

std::optional<HttpResponse> UnlessMethod(const HttpRequest& request, const char* method) {
  if (request.method == method) return std::nullopt;
  HttpResponse response = RestError(405, absl::StrCat(ToAbsl(request.path), " takes ", method));
  response.headers["Allow"] = method;
  return response;
}

std::string_view KeyOf(const HttpRequest& request) {
  const auto found = request.headers.find("millrace-key");
  return found == request.headers.end() ? std::string_view() : found->second;
}

std::vector<std::string> PathParts(std::string_view path) { return absl::StrSplit(ToAbsl(path.substr(1)), '/'); }

}  // namespace millrace
