#include "services/cli/explain_command.h"

#include <array>
#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "services/cli/enum_names.h"
#include "services/cli/image_files.h"
#include "services/cli/overlay.h"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

using v1::ExplainRequest;

constexpr std::array<Named<ExplainRequest::Method>, 3> kMethods = {
    {{"integrated-gradients", ExplainRequest::METHOD_INTEGRATED_GRADIENTS},
     {"saliency", ExplainRequest::METHOD_SALIENCY},
     {"occlusion", ExplainRequest::METHOD_OCCLUSION}}};

absl::StatusOr<ExplainRequest> MakeRequest(const ExplainCommandOptions& options, const std::string& file) {
  ExplainRequest request;
  options.choice.Fill(request);
  request.set_method(ValueOf(kMethods, options.method));
  if (options.target_class.has_value()) request.set_target(*options.target_class);
  request.set_steps(options.steps);
  request.set_patch(options.patch);
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_encoded_image(), ReadFile(file, kImageFileBytesMax));
  return request;
}

std::string Describe(const v1::ExplainResponse& response, const ExplainCommandOptions& options) {
  const v1::Explanation& explanation = response.explanations(0);
  std::string text = absl::StrFormat("class %d  %s, of a black image %s  version %d", explanation.target(),
                                     FormatPercent(explanation.score()), FormatPercent(explanation.baseline_score()),
                                     response.version());
  if (ValueOf(kMethods, options.method) == ExplainRequest::METHOD_INTEGRATED_GRADIENTS) {
    absl::StrAppendFormat(&text, "  completeness error %.4f", explanation.completeness_error());
  }
  absl::StrAppendFormat(&text, "  %.1f ms", static_cast<double>(response.compute_microseconds()) / 1000);
  return text;
}

// The line to print.
absl::StatusOr<std::string> ExplainFile(const ExplainCommandOptions& options, const std::string& file,
                                        PredictClient& client) {
  MILLRACE_ASSIGN_OR_RETURN(const ExplainRequest request, MakeRequest(options, file));
  MILLRACE_ASSIGN_OR_RETURN(const v1::ExplainResponse response,
                            client.Explain(request, absl::Seconds(options.timeout_seconds)));
  if (response.explanations().empty()) return absl::InternalError("the service answered without an explanation");
  MILLRACE_ASSIGN_OR_RETURN(const std::string png, OverlayPng(response.explanations(0)));
  const std::filesystem::path out = std::filesystem::path(options.out_dir) /
                                    absl::StrCat(std::filesystem::path(file).stem().string(), ".explained.png");
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(out, png));
  return absl::StrCat(file, ": ", Describe(response, options), "  ", out.string());
}

}  // namespace

void AddExplainFlags(CLI::App& app, ExplainCommandOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  AddVersionFlags(app, options.choice);
  app.add_option("--method", options.method, "what a pixel's number means: README")
      ->check(CLI::IsMember(NamesOf(kMethods)))
      ->capture_default_str();
  app.add_option("--class", options.target_class, "class whose probability is explained; default: the most probable");
  app.add_option("--steps", options.steps, "of integrated gradients")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  app.add_option("--patch", options.patch, "pixels: side of the square of occlusion, odd")
      ->check(CLI::Range(1u, 63u))
      ->capture_default_str();
  app.add_option("--out-dir", options.out_dir, "directory for <name>.explained.png")->capture_default_str();
  app.add_option("--timeout-seconds", options.timeout_seconds, "for one file")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 3600.0));
  app.add_option("FILE", options.files, "PNG or JPEG images of any size")->required();
}

int RunExplain(const ExplainCommandOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  PredictClient client(options.target.address, options.target.credentials());
  return ForEachFile(options.files, [&](const std::string& file) { return ExplainFile(options, file, client); });
}

}  // namespace millrace
