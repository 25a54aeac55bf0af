#include "services/model/rest_api.h"

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/model/open_inference.h"
#include "services/model/page.h"
#include "services/model/rest_json.h"
#include "services/model/rest_open_inference.h"
#include "services/model/rest_response.h"
#include "services/model/rest_tensorflow.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

constexpr char kJsonBytesHeader[] = "Inference-Header-Content-Length";
constexpr char kJsonBytesHeaderLower[] = "inference-header-content-length";
constexpr char kPredict[] = ":predict";

template <typename Message>
absl::StatusOr<HttpResponse> Json(const absl::StatusOr<Message>& message) {
  MILLRACE_RETURN_IF_ERROR(message.status());
  return RestAnswer(ToRestJson(*message));
}

HttpResponse Flag(const char* name, const absl::Status& status) {
  if (!status.ok()) return RestError(status);
  return RestAnswer(RestJson{{name, true}});
}

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
  return {.roots = {"/v1", "/v2", PictureApi::kRoot},
          .pages = {"/"},
          .answer = [this](const HttpRequest& request) { return Answer(request); },
          .body_bytes_max = kBodyBytesMax,
          .bodies_bytes_max = kBodiesBytesMax,
          .threads = kThreads};
}

HttpResponse RestApi::Answer(const HttpRequest& request) {
  absl::StatusOr<HttpResponse> response = Route(request);
  return response.ok() ? *std::move(response) : RestError(response.status());
}

absl::StatusOr<HttpResponse> RestApi::Route(const HttpRequest& request) {
  if (request.path == "/") return AnswerPage(request);
  const std::string root = PathParts(request.path).front();
  if (root == "api") return pictures_.Route(request);
  return root == "v2" ? RouteOpenInference(request) : RouteTensorFlow(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteOpenInference(const HttpRequest& request) {
  const std::vector<std::string> parts = PathParts(request.path);
  const std::string second = parts.size() > 1 ? parts[1] : "";
  if (second == "repository") return RouteRepository(request);
  if (second == "models" && parts.size() > 2 && !parts[2].empty() && request.path != "/v2/models/stats") {
    const bool versioned = parts.size() > 4 && parts[3] == "versions";
    const size_t verb = versioned ? 5 : 3;
    if (parts.size() > verb + 1) return NothingAt(request);
    return RouteModel(request, {.model = parts[2], .version = versioned ? parts[4] : "", .label = ""},
                      parts.size() > verb ? parts[verb] : "");
  }
  if (auto wrong = UnlessMethod(request, "GET")) return *wrong;
  if (request.path == "/v2" || request.path == "/v2/") return RestAnswer(ToRestJson(catalog_.Server()));
  if (request.path == "/v2/health/live") return Flag("live", absl::OkStatus());
  if (request.path == "/v2/health/ready") return Flag("ready", catalog_.Ready());
  if (request.path == "/v2/models/stats") return Json(catalog_.Statistics("", ""));
  return NothingAt(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteModel(const HttpRequest& request, const Target& target,
                                                 const std::string& verb) {
  if (auto wrong = UnlessMethod(request, verb == "infer" ? "POST" : "GET")) return *wrong;
  if (verb == "infer") return Infer(request, target);
  if (verb.empty()) return Json(catalog_.Metadata(target.model, target.version));
  if (verb == "ready") return Flag("ready", catalog_.ModelReady(target.model, target.version));
  if (verb == "config") return Json(catalog_.Config(target.model, target.version));
  if (verb == "stats") return Json(catalog_.Statistics(target.model, target.version));
  return NothingAt(request);
}

absl::StatusOr<HttpResponse> RestApi::RouteRepository(const HttpRequest& request) {
  const std::vector<std::string> parts = PathParts(request.path);
  const bool load = parts.size() == 5 && parts[2] == "models" && (parts[4] == "load" || parts[4] == "unload");
  if (!load && request.path != "/v2/repository/index") return NothingAt(request);
  if (auto wrong = UnlessMethod(request, "POST")) return *wrong;
  if (load) return ControlModel(request, parts[3], parts[4] == "load");
  bool ready_only = false;
  if (!request.body.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(const RestJson json, ParseRestJson(request.body));
    ready_only = json.is_object() && json.contains("ready") && json["ready"] == true;
  }
  return RestAnswer(ToRestJson(catalog_.Index(ready_only))["models"]);
}

absl::StatusOr<HttpResponse> RestApi::ControlModel(const HttpRequest& request, const std::string& model, bool load) {
  // A browser lets any page it shows send this to any address that it can reach.
  if (request.headers.contains("origin")) {
    return absl::PermissionDeniedError("a web page may not load or unload models");
  }
  const auto authorization = request.headers.find("authorization");
  MILLRACE_RETURN_IF_ERROR(
      operators_.Check(authorization == request.headers.end() ? std::string_view() : authorization->second));
  if (!load) {
    inference::RepositoryModelUnloadRequest message;
    message.set_model_name(model);
    MILLRACE_RETURN_IF_ERROR(control_.Unload(message));
    return HttpResponse{};
  }
  inference::RepositoryModelLoadRequest message;
  message.set_model_name(model);
  if (!request.body.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(const RestJson json, ParseRestJson(request.body));
    const auto parameters = json.find("parameters");
    if (parameters != json.end() && parameters->is_object()) {
      for (const auto& [name, _] : parameters->items()) (*message.mutable_parameters())[name];
    }
  }
  return WaitForAnswer<HttpResponse>([&](const std::function<void(absl::StatusOr<HttpResponse>)>& done) {
    control_.Load(message, [done](const absl::Status& status) {
      if (status.ok()) return done(HttpResponse{});
      done(status);
    });
  });
}

absl::StatusOr<HttpResponse> RestApi::RouteTensorFlow(const HttpRequest& request) {
  std::string_view path = request.path;
  const bool predict =
      path.size() > std::size(kPredict) && path.substr(path.size() - std::size(kPredict) + 1) == kPredict;
  if (predict) path.remove_suffix(std::size(kPredict) - 1);
  const std::vector<std::string> parts = PathParts(path);
  const bool versioned = parts.size() == 5 && parts[3] == "versions";
  const bool labelled = parts.size() == 5 && parts[3] == "labels";
  if (parts.size() < 3 || parts[1] != "models" || (parts.size() > 3 && !versioned && !labelled)) {
    return NothingAt(request);
  }
  Target target{.model = parts[2], .version = versioned ? parts[4] : "", .label = labelled ? parts[4] : ""};
  if (auto wrong = UnlessMethod(request, predict ? "POST" : "GET")) return *wrong;
  if (predict) return Predict(request, target);
  if (labelled) {
    MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> version, Find(target));
    target.version = absl::StrCat(version->info().version);
  }
  MILLRACE_ASSIGN_OR_RETURN(std::string status, StatusToRest(catalog_.Index(false), target.model, target.version));
  return HttpResponse{.body = std::move(status)};
}

absl::StatusOr<HttpResponse> RestApi::Infer(const HttpRequest& request, const Target& target) {
  MILLRACE_ASSIGN_OR_RETURN(const RestAdmission::Place place, admission_.Admit());
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version, Find(target));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<size_t> json_bytes, JsonBytesOf(request));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferRequest message, InferRequestFromRest(request.body, json_bytes));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferResponse response,
                            Compute(std::move(version), target, request, message));
  RestBody body = InferResponseToRest(message, response);
  HttpResponse result{.body = std::move(body.bytes)};
  if (body.json_bytes) {
    result.content_type = "application/octet-stream";
    result.headers[kJsonBytesHeader] = absl::StrCat(*body.json_bytes);
  }
  return result;
}

absl::StatusOr<HttpResponse> RestApi::Predict(const HttpRequest& request, const Target& target) {
  MILLRACE_ASSIGN_OR_RETURN(const RestAdmission::Place place, admission_.Admit());
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version, Find(target));
  MILLRACE_ASSIGN_OR_RETURN(const TensorFlowPredict asked, PredictFromRest(version->info(), request.body));
  MILLRACE_ASSIGN_OR_RETURN(const inference::ModelInferResponse response,
                            Compute(std::move(version), target, request, asked.message));
  return HttpResponse{.body = PredictToRest(asked, response)};
}

absl::StatusOr<std::shared_ptr<const LoadedVersion>> RestApi::Find(const Target& target) const {
  return target.label.empty() ? catalog_.Find(target.model, target.version)
                              : catalog_.FindLabel(target.model, target.label);
}

absl::StatusOr<inference::ModelInferResponse> RestApi::Compute(std::shared_ptr<const LoadedVersion> version,
                                                               const Target& target, const HttpRequest& request,
                                                               const inference::ModelInferRequest& message) {
  const absl::Time now = clock_.Now();
  MILLRACE_ASSIGN_OR_RETURN(OpenInference inference,
                            ToInference(version->info(), message, now, now + RestAdmission::kWaitMax));
  inference.raw = true;
  inference.request.any_version = target.version.empty() && target.label.empty();
  if (inference.request.key.empty()) inference.request.key = KeyOf(request);
  inference.request.peer = [&request] { return request.peer; };
  version = RouteRequest(std::move(version), inference.request);
  const std::shared_ptr<const LoadedVersion> answering = version;

  MILLRACE_ASSIGN_OR_RETURN(const InferenceAnswer answer, WaitForAnswer<InferenceAnswer>([&](InferenceDone done) {
                              engine_.Infer(std::move(version), inference.request, std::move(done));
                            }));
  inference::ModelInferResponse response;
  FillResponse(answering->info(), inference, answer, &response);
  return response;
}

}  // namespace millrace
