#include "services/worker/activity.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace {

std::string Activity::Describe() const {
  MutexLock lock(&mutex_);
  const std::string seconds = absl::StrFormat("%.1f s", absl::ToDoubleSeconds(clock_.Now() - since_));
  if (!waiting_for_.empty()) return absl::StrCat("waiting for ", waiting_for_, ", ", seconds);
  return absl::StrCat(doing_, ", ", seconds);
}

}  // namespace millrace
