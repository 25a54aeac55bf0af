#include "services/model/rest_api.h"

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/strings.h"
#include "services/model/open_inference.h"
#include "services/model/rest_json.h"
#include "services/model/rest_open_inference.h"
#include "services/model/rest_tensorflow.h"
#include "services/model/retry_hint.h"

namespace millrace {
namespace {

constexpr char kJsonBytesHeader[] = "Inference-Header-Content-Length";
constexpr char kJsonBytesHeaderLower[] = "inference-header-content-length";
constexpr char kPredict[] = ":predict";

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
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

HttpResponse ErrorResponse(int status, std::string_view message) {
  return {.status = status, .body = Dump({{"error", message}})};
}

HttpResponse ErrorResponse(const absl::Status& status) {
  HttpResponse response = ErrorResponse(HttpStatusOf(status.code()), ToStd(status.message()));
  if (const std::optional<absl::Duration> after = RetryAfter(status); after && response.status != 504) {
    response.headers["Retry-After"] = absl::StrCat(absl::ToInt64Seconds(absl::Ceil(*after, absl::Seconds(1))));
  }
  return response;
}

HttpResponse Json(const RestJson& json) { return {.body = Dump(json)}; }

template <typename Message>
absl::StatusOr<HttpResponse> Json(const absl::StatusOr<Message>& message) {
  MILLRACE_RETURN_IF_ERROR(message.status());
  return Json(ToRestJson(*message));
}

absl::Status Nowhere(const HttpRequest& request) {
  return absl::NotFoundError(absl::StrCat("there is nothing at ", ToAbsl(request.path)));
}

HttpResponse Flag(const char* name, const absl::Status& status) {
  if (!status.ok()) return ErrorResponse(status);
  return Json(RestJson{{name, true}});
}

// 405 unless it is the one.
std::optional<HttpResponse> UnlessMethod(const HttpRequest& request, const char* method) {
  if (request.method == method) return std::nullopt;
  HttpResponse response = ErrorResponse(405, absl::StrCat(ToAbsl(request.path), " takes ", method));
  response.headers["Allow"] = method;
  return response;
}

std::vector<std::string> PartsOf(std::string_view path) { return absl::StrSplit(ToAbsl(path.substr(1)), '/'); }

absl::StatusOr<std::optional<size_t>> JsonBytesOf(const HttpRequest& request) {
  const auto found = request.headers.find(kJsonBytesHeaderLower);
  if (found == request.headers.end()) return std::nullopt;
  uint64_t bytes = 0;
  if (!absl::SimpleAtoi(found->second, &bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(kJsonBytesHeader, " is not a number: ", found->second));
  }
  return bytes;
}

}  // namespace

HttpApi RestApi::Api() {
  return {.roots = {"/v1", "/v2"},
          .answer = [this](const HttpRequest& request) { return Answer(request); },
          .body_bytes_max = kBodyBytesMax,
          .bodies_bytes_max = kBodiesBytesMax,
          .threads = kThreads};
}

HttpResponse RestApi::Answer(const HttpRequest& request) {
  absl::StatusOr<HttpResponse> response = Route(request);
  return response.ok() ? *std::move(response) : ErrorResponse(response.status());
}

absl::StatusOr<HttpResponse> RestApi::Route(const HttpRequest& request) {
  return request.path.substr(0, 3) == "/v2" ? RouteOpenInference(request) : RouteTensorFlow(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteOpenInference(const HttpRequest& request) {
  const std::vector<std::string> parts = PartsOf(request.path);
  const std::string second = parts.size() > 1 ? parts[1] : "";
  if (second == "repository") return RouteRepository(request);
  if (second == "models" && parts.size() > 2 && !parts[2].empty() && request.path != "/v2/models/stats") {
    const bool versioned = parts.size() > 4 && parts[3] == "versions";
    const size_t verb = versioned ? 5 : 3;
    if (parts.size() > verb + 1) return Nowhere(request);
    return RouteModel(request, {.model = parts[2], .version = versioned ? parts[4] : ""},
                      parts.size() > verb ? parts[verb] : "");
  }
  if (auto wrong = UnlessMethod(request, "GET")) return *wrong;
  if (request.path == "/v2" || request.path == "/v2/") return Json(ToRestJson(catalog_.Server()));
  if (request.path == "/v2/health/live") return Flag("live", absl::OkStatus());
  if (request.path == "/v2/health/ready") return Flag("ready", catalog_.Ready());
  if (request.path == "/v2/models/stats") return Json(catalog_.Statistics("", ""));
  return Nowhere(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteModel(const HttpRequest& request, const Target& target,
                                                 const std::string& verb) {
  if (auto wrong = UnlessMethod(request, verb == "infer" ? "POST" : "GET")) return *wrong;
  if (verb == "infer") return Infer(request, target);
  if (verb.empty()) return Json(catalog_.Metadata(target.model, target.version));
  if (verb == "ready") return Flag("ready", catalog_.ModelReady(target.model, target.version));
  if (verb == "config") return Json(catalog_.Config(target.model, target.version));
  if (verb == "stats") return Json(catalog_.Statistics(target.model, target.version));
  return Nowhere(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteRepository(const HttpRequest& request) {
  const std::vector<std::string> parts = PartsOf(request.path);
  const bool load = parts.size() == 5 && parts[2] == "models" && (parts[4] == "load" || parts[4] == "unload");
  if (!load && request.path != "/v2/repository/index") return Nowhere(request);
  if (auto wrong = UnlessMethod(request, "POST")) return *wrong;
  if (load) return OpenInferenceCatalog::LoadedByRepository();
  bool ready_only = false;
  if (!request.body.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(const RestJson json, ParseRestJson(request.body));
    ready_only = json.is_object() && json.contains("ready") && json["ready"] == true;
  }
  return Json(ToRestJson(catalog_.Index(ready_only))["models"]);
}

absl::StatusOr<HttpResponse> RestApi::RouteTensorFlow(const HttpRequest& request) {
  std::string_view path = request.path;
  const bool predict =
      path.size() > std::size(kPredict) && path.substr(path.size() - std::size(kPredict) + 1) == kPredict;
  if (predict) path.remove_suffix(std::size(kPredict) - 1);
  const std::vector<std::string> parts = PartsOf(path);
  const bool versioned = parts.size() == 5 && parts[3] == "versions";
  if (parts.size() < 3 || parts[1] != "models" || (parts.size() > 3 && !versioned)) return Nowhere(request);
  const Target target{.model = parts[2], .version = versioned ? parts[4] : ""};
  if (auto wrong = UnlessMethod(request, predict ? "POST" : "GET")) return *wrong;
  if (predict) return Predict(request, target);
  MILLRACE_ASSIGN_OR_RETURN(std::string status, StatusToRest(catalog_.Index(false), target.model, target.version));
  return HttpResponse{.body = std::move(status)};
}

absl::StatusOr<HttpResponse> RestApi::Infer(const HttpRequest& request, const Target& target) {
  MILLRACE_RETURN_IF_ERROR(Admit());
  const absl::Cleanup leave = [&] { Leave(); };
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version, catalog_.Find(target.model, target.version));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<size_t> json_bytes, JsonBytesOf(request));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferRequest message, InferRequestFromRest(request.body, json_bytes));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferResponse response, Compute(std::move(version), message));
  RestBody body = InferResponseToRest(message, response);
  HttpResponse result{.body = std::move(body.bytes)};
  if (body.json_bytes) {
    result.content_type = "application/octet-stream";
    result.headers[kJsonBytesHeader] = absl::StrCat(*body.json_bytes);
  }
  return result;
}

absl::StatusOr<HttpResponse> RestApi::Predict(const HttpRequest& request, const Target& target) {
  MILLRACE_RETURN_IF_ERROR(Admit());
  const absl::Cleanup leave = [&] { Leave(); };
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version, catalog_.Find(target.model, target.version));
  MILLRACE_ASSIGN_OR_RETURN(const TensorFlowPredict asked, PredictFromRest(version->info(), request.body));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferResponse response, Compute(std::move(version), asked.message));
  return HttpResponse{.body = PredictToRest(asked, response)};
}

absl::Status RestApi::Admit() {
  MutexLock lock(&mutex_);
  if (predictions_ < kPredictionsMax) {
    ++predictions_;
    return absl::OkStatus();
  }
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("the limit of ", kPredictionsMax, " predictions at once over REST is reached"));
  SetRetryAfter(status, absl::Seconds(1));
  return status;
}

void RestApi::Leave() {
  MutexLock lock(&mutex_);
  --predictions_;
}

absl::StatusOr<inference::ModelInferResponse> RestApi::Compute(std::shared_ptr<const LoadedVersion> version,
                                                               const inference::ModelInferRequest& message) {
  const ModelInfo& info = version->info();
  const absl::Time now = clock_.Now();
  MILLRACE_ASSIGN_OR_RETURN(OpenInference inference, ToInference(info, message, now, now + kWaitMax));
  inference.raw = true;

  Mutex mutex;
  CondVar answered;
  std::optional<absl::StatusOr<InferenceAnswer>> answer;
  engine_.Infer(version, inference.request, [&](absl::StatusOr<InferenceAnswer> result) {
    MutexLock lock(&mutex);  // until after the signal: then this function may return
    answer = std::move(result);
    answered.Signal();
  });
  MutexLock lock(&mutex);
  while (!answer) answered.Wait(&mutex);
  MILLRACE_RETURN_IF_ERROR(answer->status());
  inference::ModelInferResponse response;
  FillResponse(info, inference, **answer, &response);
  return response;
}

}  // namespace millrace
