#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "millrace/v1/model.pb.h"
#include "services/cli/target.h"
#include "services/cli/version_choice.h"

namespace millrace {

struct PredictOptions {
  Target target = {};
  VersionChoice choice{};
  std::vector<std::string> files{};  // PNG or JPEG
  double timeout_seconds = 10;
};

void AddPredictFlags(CLI::App& app, PredictOptions& options);

// One line per file on stdout (class and probability, or the reconstruction's error; version, time); one on stderr for
// a file that failed, which does not stop the others. Returns the exit code: kExitFailure if any failed.
int RunPredict(const PredictOptions& options);

// "three.png: 3  99.87 %  version 4220  1.23 ms", of an autoencoder "three.png: reconstruction error 0.00512  version
// 4220 1.23 ms". Pure; `response` holds at least one prediction.
std::string FormatPrediction(absl::string_view file, const v1::PredictResponse& response, absl::Duration elapsed);

}  // namespace millrace
