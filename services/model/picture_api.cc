#include "services/model/picture_api.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/model/image_preparation.h"
#include "services/model/rest_response.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

struct Method {
  const char* name;
  ExplainMethod method;
};
constexpr Method kMethods[] = {{"integrated-gradients", ExplainMethod::kIntegratedGradients},
                               {"saliency", ExplainMethod::kSaliency},
                               {"occlusion", ExplainMethod::kOcclusion}};

absl::StatusOr<ExplainOptions> OptionsOf(const HttpRequest& request) {
  ExplainOptions options;
  if (const auto asked = request.query.find("method"); asked != request.query.end()) {
    const auto* known = std::ranges::find(kMethods, asked->second, &Method::name);
    if (known == std::end(kMethods)) {
      return absl::InvalidArgumentError(
          absl::StrCat("method ", asked->second, " is not integrated-gradients, saliency or occlusion"));
    }
    options.method = known->method;
  }
  if (const auto asked = request.query.find("target"); asked != request.query.end()) {
    uint32_t target = 0;
    if (!absl::SimpleAtoi(asked->second, &target)) {
      return absl::InvalidArgumentError(absl::StrCat("target is not a class: ", asked->second));
    }
    options.target = target;
  }
  return options;
}

bool IsPicture(const HttpRequest& request) {
  const auto type = request.headers.find("content-type");
  return type != request.headers.end() && (type->second == "image/png" || type->second == "image/jpeg");
}

RestJson Describe(const ModelInfo& info) {
  return {{"model", info.model},
          {"version", absl::StrCat(info.version)},
          {"step", info.step},
          {"digest", info.digest},
          {"accuracy", static_cast<float>(info.accuracy)},
          {"input", {{"channels", info.input.channels}, {"height", info.input.height}, {"width", info.input.width}}},
          {"classes", info.classes}};
}

}  // namespace

absl::StatusOr<HttpResponse> PictureApi::Route(const HttpRequest& request) {
  const std::vector<std::string> parts = PathParts(request.path);
  const bool versioned = parts.size() > 4 && parts[3] == "versions";
  const size_t last = versioned ? 5 : 3;
  const std::string verb = parts.size() == last + 1 ? parts[last] : "";
  const bool explain = verb == "explain";
  if (request.path != "/api/models" && ((verb != "predict" && !explain) || parts[1] != "models")) {
    return NothingAt(request);
  }
  if (auto wrong = UnlessMethod(request, verb.empty() ? "GET" : "POST")) return *wrong;
  if (verb.empty()) return Models();
  if (!IsPicture(request)) return RestError(415, "the body must be of Content-Type image/png or image/jpeg");

  MILLRACE_ASSIGN_OR_RETURN(const RestAdmission::Place place, admission_.Admit());
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> version,
                            catalog_.Find(parts[2], versioned ? parts[4] : ""));
  MILLRACE_ASSIGN_OR_RETURN(const ExplainOptions options, OptionsOf(request));
  MILLRACE_ASSIGN_OR_RETURN(const Row row, Prepare(request.body, version->info()));
  const InferenceRequest asked{.input = row.pixels, .any_version = !versioned, .key = KeyOf(request)};
  if (explain) return Explain(AnswererOf(version, asked), row, options);
  return Predict(RouteRequest(version, asked), row, request);
}

HttpResponse PictureApi::Models() const {
  RestJson models = RestJson::array();
  const inference::RepositoryIndexResponse index = catalog_.Index(true);
  for (const auto& model : index.models()) {
    const auto version = catalog_.Find(model.name(), "");
    // Not of a candidate; and if it was replaced this moment, next time.
    if (!version.ok() || absl::StrCat((*version)->info().version) != model.version()) continue;
    models.push_back(Describe((*version)->info()));
  }
  HttpResponse response = RestAnswer(models);
  response.headers["Cache-Control"] = "no-store";
  // It is asked for every second by everybody who looks at the page, and a connection that is kept holds a thread.
  response.headers["Connection"] = "close";
  return response;
}

absl::StatusOr<PictureApi::Row> PictureApi::Prepare(std::string_view picture, const ModelInfo& info) {
  Row row;
  const absl::Time start = clock_.Now();
  row.deadline = start + RestAdmission::kWaitMax;
  const std::span bytes(reinterpret_cast<const uint8_t*>(picture.data()), picture.size());
  {
    MutexLock lock(&decoding_);
    MILLRACE_ASSIGN_OR_RETURN(row.pixels, RowOfPicture(bytes, info.input));
  }
  row.took = clock_.Now() - start;
  return row;
}

absl::StatusOr<HttpResponse> PictureApi::Predict(const std::shared_ptr<const LoadedVersion>& version, const Row& row,
                                                 const HttpRequest& asked) {
  const InferenceRequest request{
      .input = row.pixels, .deadline = row.deadline, .peer = [&asked] { return asked.peer; }};
  MILLRACE_ASSIGN_OR_RETURN(InferenceAnswer answer, WaitForAnswer<InferenceAnswer>([&](InferenceDone done) {
                              engine_.Infer(version, request, std::move(done));
                            }));
  const ModelInfo& info = version->info();
  RestJson json = Describe(info);
  if (info.classes > 0) {
    json["label"] = std::ranges::max_element(answer.values) - answer.values.begin();
    json["probabilities"] = std::move(answer.values);
  } else {
    json["error"] = answer.values.back();
    answer.values.pop_back();
    json["reconstruction"] = std::move(answer.values);
  }
  json["image"] = row.pixels;
  json["microseconds"] = {{"prepare", absl::ToInt64Microseconds(row.took)},
                          {"queue", absl::ToInt64Microseconds(answer.queue)},
                          {"batch_wait", absl::ToInt64Microseconds(answer.batch_wait)},
                          {"compute", absl::ToInt64Microseconds(answer.compute)}};
  return RestAnswer(json);
}

absl::StatusOr<HttpResponse> PictureApi::Explain(const std::shared_ptr<const LoadedVersion>& version, const Row& row,
                                                 const ExplainOptions& options) {
  const InferenceRequest request{.input = row.pixels, .deadline = row.deadline};
  MILLRACE_ASSIGN_OR_RETURN(const ExplainAnswer answer, WaitForAnswer<ExplainAnswer>([&](Explainer::Done done) {
                              explainer_.Explain(version, request, options, std::move(done));
                            }));
  const Explanation& explanation = answer.explanations.front();
  RestJson json = Describe(version->info());
  json["image"] = row.pixels;
  json["method"] = std::ranges::find(kMethods, options.method, &Method::method)->name;
  json["target"] = explanation.target;
  json["score"] = explanation.score;
  json["baseline_score"] = explanation.baseline_score;
  json["completeness_error"] = explanation.completeness_error;
  json["map"] = explanation.map;
  json["cached"] = answer.cached;
  json["microseconds"] = {{"prepare", absl::ToInt64Microseconds(row.took)},
                          {"compute", absl::ToInt64Microseconds(answer.compute)}};
  return RestAnswer(json);
}

}  // namespace millrace
