#include "services/cli/asynchrony_flags.h"

#include <array>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/limits.h"
#include "common/text_format.h"
#include "services/cli/enum_names.h"

namespace millrace {
namespace {

constexpr char kUnbounded[] = "unbounded";
constexpr double kDefaultCompensation = 0.04;

constexpr std::array<Named<v1::StaleGradients>, 3> kPolicies = {{
    {"as-they-are", v1::STALE_GRADIENTS_AS_THEY_ARE},
    {"smaller-steps", v1::STALE_GRADIENTS_SMALLER_STEPS},
    {"compensated", v1::STALE_GRADIENTS_COMPENSATED},
}};

absl::Status ApplyStaleness(const std::string& staleness, v1::AsynchronySpec& spec) {
  uint32_t steps = 0;
  spec.set_unbounded(staleness == kUnbounded);
  if (!spec.unbounded() && (!absl::SimpleAtoi(staleness, &steps) || steps > kStalenessMax)) {
    return absl::InvalidArgumentError(absl::StrCat("--staleness: '", staleness, "' is neither a number from 0 to ",
                                                   kStalenessMax, " nor '", kUnbounded, "'"));
  }
  spec.set_staleness(steps);
  return absl::OkStatus();
}

}  // namespace

void AddAsynchronyFlags(CLI::App& app, AsynchronyFlags& flags, const std::string& group) {
  app.add_option(
         "--staleness", flags.staleness,
         "steps that gradients may be behind the weights they change: 0 is synchronous training; up to 16, still "
         "the same bits for every cluster; or 'unbounded', which is not reproducible")
      ->group(group)
      ->default_str("0");
  app.add_option(
         "--stale-gradients", flags.stale_gradients,
         "taken as-they-are; smaller-steps: the learning rate is divided by 1 + staleness; compensated: corrected "
         "for the way the weights have gone since")
      ->group(group)
      ->default_str("as-they-are")
      ->check(CLI::IsMember(NamesOf(kPolicies)));
  app.add_option("--compensation", flags.compensation, "compensated: how strongly")
      ->group(group)
      ->default_str(absl::StrCat(kDefaultCompensation))
      ->check(CLI::Range(1e-12, 10.0));
}

absl::Status ApplyAsynchronyFlags(const AsynchronyFlags& flags, v1::JobSpec& spec) {
  v1::AsynchronySpec& asynchrony = *spec.mutable_asynchrony();
  if (flags.staleness.has_value()) {
    if (absl::Status status = ApplyStaleness(*flags.staleness, asynchrony); !status.ok()) return status;
  }
  if (flags.stale_gradients.has_value()) {
    asynchrony.set_stale_gradients(ValueOf(kPolicies, *flags.stale_gradients));
  }
  const bool stale = asynchrony.staleness() > 0 || asynchrony.unbounded();
  if (flags.stale_gradients.has_value() && !stale) {
    return absl::InvalidArgumentError("--stale-gradients is only for a --staleness over 0");
  }
  const bool compensated = asynchrony.stale_gradients() == v1::STALE_GRADIENTS_COMPENSATED;
  if (flags.compensation.has_value() && !compensated) {
    return absl::InvalidArgumentError("--compensation is only for --stale-gradients compensated");
  }
  if (compensated && asynchrony.unbounded()) {
    return absl::InvalidArgumentError(
        "--stale-gradients compensated needs the old weights, so --staleness must have a bound");
  }
  if (compensated && asynchrony.compensation() == 0) asynchrony.set_compensation(kDefaultCompensation);
  if (flags.compensation.has_value()) asynchrony.set_compensation(*flags.compensation);
  if (!stale) spec.clear_asynchrony();  // one way to say it: a job that is resumed is compared field by field
  return absl::OkStatus();
}

std::string DescribeAsynchrony(const v1::JobSpec& spec) {
  const v1::AsynchronySpec& asynchrony = spec.asynchrony();
  if (asynchrony.staleness() == 0 && !asynchrony.unbounded()) return "";
  const uint64_t behind = asynchrony.unbounded() ? kUnboundedSteps : asynchrony.staleness();
  std::string text =
      absl::StrCat("asynchronous: gradients up to ", behind, behind == 1 ? " step" : " steps", " old, so up to ",
                   FormatCount(spec.batch_size() * (behind + 1)), " samples under way at once");
  const double rate = spec.optimizer().learning_rate();
  if (asynchrony.stale_gradients() == v1::STALE_GRADIENTS_SMALLER_STEPS) {
    absl::StrAppendFormat(&text, "; learning rate from %g down to %g", rate, rate / static_cast<double>(behind + 1));
  } else {
    absl::StrAppendFormat(&text, "; learning rate %g however old they are", rate);
  }
  if (asynchrony.unbounded()) absl::StrAppend(&text, "; not reproducible");
  return text;
}

}  // namespace millrace
