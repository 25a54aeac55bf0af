#include "services/model/rest_admission.h"

#include "absl/strings/str_cat.h"
#include "services/model/retry_hint.h"

namespace millrace {

absl::StatusOr<RestAdmission::Place> RestAdmission::Admit() {
  MutexLock lock(&mutex_);
  if (predictions_ < kPredictionsMax) {
    ++predictions_;
    return Place(*this);
  }
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("the limit of ", kPredictionsMax, " predictions at once over REST is reached"));
  SetRetryAfter(status, absl::Seconds(1));
  return status;
}

void RestAdmission::Leave() {
  MutexLock lock(&mutex_);
  --predictions_;
}

}  // namespace millrace
