#include "services/cli/predict_command.h"

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "services/cli/image_files.h"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

absl::StatusOr<std::string> PredictFile(const PredictOptions& options, const std::string& file, PredictClient& client) {
  v1::PredictRequest request;
  options.choice.Fill(request);
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_encoded_image(), ReadFile(file, kImageFileBytesMax));
  const absl::Time start = RealClock().Now();
  MILLRACE_ASSIGN_OR_RETURN(const v1::PredictResponse response,
                            client.Predict(request, absl::Seconds(options.timeout_seconds)));
  if (response.predictions().empty()) return absl::InternalError("the service answered without a prediction");
  return FormatPrediction(file, response, RealClock().Now() - start);
}

}  // namespace

void AddPredictFlags(CLI::App& app, PredictOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  AddVersionFlags(app, options.choice);
  app.add_option("--timeout-seconds", options.timeout_seconds, "for one file")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 3600.0));
  app.add_option("FILE", options.files, "PNG or JPEG images of any size")->required();
}

std::string FormatPrediction(absl::string_view file, const v1::PredictResponse& response, absl::Duration elapsed) {
  const v1::Prediction& prediction = response.predictions(0);
  const double ms = absl::ToDoubleMilliseconds(elapsed);
  if (prediction.has_error()) {
    return absl::StrFormat("%s: reconstruction error %.5f  version %d  %.2f ms", file, prediction.error(),
                           response.version(), ms);
  }
  const double probability = prediction.label() < static_cast<uint32_t>(prediction.probabilities_size())
                                 ? prediction.probabilities(static_cast<int>(prediction.label()))
                                 : 0;
  return absl::StrFormat("%s: %d  %s  version %d  %.2f ms", file, prediction.label(), FormatPercent(probability),
                         response.version(), ms);
}

int RunPredict(const PredictOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  PredictClient client(options.target.address, options.target.credentials());
  return ForEachFile(options.files, [&](const std::string& file) { return PredictFile(options, file, client); });
}

}  // namespace millrace
