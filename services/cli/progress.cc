#include "services/cli/progress.h"

#include <sys/ioctl.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/job_text.h"
#include "common/text_format.h"

namespace millrace {
namespace {

constexpr absl::Duration kPlainLineInterval = absl::Seconds(5);
constexpr absl::Duration kUnremarkableWait = absl::Seconds(1);

}  // namespace

bool WaitTracker::Update(absl::Time now, absl::string_view waiting_for, uint64_t progress) {
  if (waiting_for.empty()) {
    progress_.reset();
    since_ = absl::InfiniteFuture();
    return false;
  }
  if (progress_ != progress) {
    progress_ = progress;
    since_ = now;
  }
  return now - since_ > kUnremarkableWait;
}

std::optional<std::string> RecoveryTracker::Update(absl::Time now, const v1::JobStatus& status) {
  if (!status.has_plan()) return std::nullopt;
  const uint64_t start = status.plan().start_version();
  if (status.plan().run_id() != run_id_) {
    if (run_id_ != 0 && !since_.has_value()) {
      since_ = reached_;
      from_ = version_;
    }
    run_id_ = status.plan().run_id();
    version_ = start;
    reached_ = now;
  }
  if (status.version() > version_) {
    version_ = status.version();
    reached_ = now;
  }
  const bool over = status.version() > start || status.state() == v1::JobStatus::STATE_DONE;
  if (!since_.has_value() || !over) return std::nullopt;
  const double seconds = absl::ToDoubleSeconds(now - *since_);
  since_.reset();
  ++count_;
  seconds_ += seconds;
  const std::string reason =
      status.recoveries().empty() ? "the coordinator was restarted" : status.recoveries().rbegin()->reason();
  return absl::StrFormat("recovered: %s; from step %s back to %s, no step for %.1f s", reason, FormatCount(from_),
                         FormatCount(start), seconds);
}

ProgressReporter::ProgressReporter(std::FILE* stream, bool terminal, const Clock& clock)
    : stream_(stream), terminal_(terminal), clock_(clock), next_plain_line_(clock.Now() + kPlainLineInterval) {}

ProgressReporter::~ProgressReporter() {
  if (live_line_shown_) std::fputs("\r\x1b[K", stream_);
  std::fflush(stream_);
}

void ProgressReporter::Update(const v1::JobStatus& status) {
  for (; evaluations_shown_ < status.validation_size(); ++evaluations_shown_) {
    const v1::Evaluation& evaluation = status.validation(evaluations_shown_);
    // A resumed run brings the history of earlier runs, which was shown then.
    if (evaluation.version() >= status.plan().start_version()) {
      Print(FormatEvaluation(evaluation, status.plan().spec().epochs()));
    }
  }
  if (const std::optional<std::string> line = recoveries_.Update(clock_.Now(), status)) Print(*line);
  if (status.stopped_early() && !stopped_early_shown_) {
    stopped_early_shown_ = true;
    Print(FormatEarlyStop(status));
  }
  const bool checkpoint_error = !status.checkpoint_error().empty();
  const bool goes_on = status.state() != v1::JobStatus::STATE_FAILED;  // else the failure says why
  if (goes_on && checkpoint_error && !checkpoint_error_shown_) {
    Print(absl::StrCat("CHECKPOINT FAILED, training goes on without it: ", status.checkpoint_error()));
  } else if (goes_on && !checkpoint_error && checkpoint_error_shown_) {
    Print("checkpoints are written again");
  }
  checkpoint_error_shown_ = checkpoint_error;
  const bool waits = waits_.Update(clock_.Now(), status.waiting_for(), status.version());
  Live(waits ? FormatWait(status) : FormatProgress(status));
}

void ProgressReporter::Waiting(absl::string_view what) {
  const absl::Time now = clock_.Now();
  if (what != waiting_for_) {
    waiting_for_ = std::string(what);
    waiting_since_ = now;
    next_plain_line_ = now;
  }
  if (now - waiting_since_ < kUnremarkableWait) return;
  Live(absl::StrCat("waiting for ", what, " (", FormatClock(now - waiting_since_), ")"));
}

void ProgressReporter::Print(absl::string_view line) {
  if (live_line_shown_) std::fputs("\r\x1b[K", stream_);
  live_line_shown_ = false;
  std::fwrite(line.data(), 1, line.size(), stream_);
  std::fputc('\n', stream_);
  std::fflush(stream_);
}

void ProgressReporter::Live(const std::string& line) {
  if (terminal_) {
    std::fprintf(stream_, "\r%s\x1b[K", FitToWidth(line, Columns()).c_str());
    std::fflush(stream_);
    live_line_shown_ = true;
    return;
  }
  if (clock_.Now() < next_plain_line_) return;
  next_plain_line_ = clock_.Now() + kPlainLineInterval;
  Print(line);
}

size_t ProgressReporter::Columns() const {
  winsize size{};
  if (ioctl(fileno(stream_), TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return 79;
  return size.ws_col - 1;  // a character in the last column would wrap on some terminals
}

}  // namespace millrace
