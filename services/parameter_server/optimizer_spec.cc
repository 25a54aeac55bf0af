#include "services/parameter_server/optimizer_spec.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

absl::Status CheckPositive(absl::string_view field, double value) {
  if (value > 0 && std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("optimizer.", field, " ", value, " must be over 0 and finite"));
}

absl::Status CheckFraction(absl::string_view field, double value) {
  if (value >= 0 && value < 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("optimizer.", field, " ", value, " must be at least 0 and below 1"));
}

}  // namespace

absl::Status CheckOptimizerSpec(const v1::OptimizerSpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckPositive("learning_rate", spec.learning_rate()));
  if (!(spec.weight_decay() >= 0) || !std::isfinite(spec.weight_decay())) {
    return absl::InvalidArgumentError(
        absl::StrCat("optimizer.weight_decay ", spec.weight_decay(), " must be at least 0 and finite"));
  }
  switch (spec.kind()) {
    case v1::OPTIMIZER_KIND_SGD:
      return CheckFraction("momentum", spec.momentum());
    case v1::OPTIMIZER_KIND_ADAM:
    case v1::OPTIMIZER_KIND_ADAMW:
      MILLRACE_RETURN_IF_ERROR(CheckFraction("beta1", spec.beta1()));
      MILLRACE_RETURN_IF_ERROR(CheckFraction("beta2", spec.beta2()));
      return CheckPositive("epsilon", spec.epsilon());
    default:
      return absl::InvalidArgumentError("optimizer.kind is missing or unknown; known: SGD, ADAM, ADAMW");
  }
}

}  // namespace millrace
