#include "services/model/explainer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "common/status_macros.h"
#include "common/thread_priority.h"
#include "services/model/image_preparation.h"

namespace millrace {
namespace {

absl::StatusOr<std::vector<uint8_t>> PixelsOf(const ModelInfo& info, const InferenceRequest& request) {
  if (request.kind == InferenceRequest::Kind::kImage) return RowOfPicture(request.input, info.input);
  if (request.kind != InferenceRequest::Kind::kRaw) {
    return absl::InvalidArgumentError("explanations are of uint8 pixels or of a PNG or JPEG");
  }
  if (request.rows < 1 || request.rows > kExplainRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat("rows ", request.rows, " is not in [1, ", kExplainRowsMax, "]"));
  }
  if (request.input.size() != request.rows * info.input.bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("model ", info.model, " takes ", info.input.bytes(),
                                                   " bytes per row; ", request.rows, " rows came with ",
                                                   request.input.size()));
  }
  return std::vector<uint8_t>(request.input.begin(), request.input.end());
}

// Equal exactly for questions with the same answer.
std::string QuestionOf(const ModelInfo& info, const ExplainOptions& options, const std::vector<uint8_t>& images) {
  return absl::StrCat(info.model, "/", info.version, "/", info.digest, "/", static_cast<int>(options.method), "/",
                      options.target.has_value() ? absl::StrCat(*options.target) : "most probable", "/", options.steps,
                      "/", options.patch, "/", Sha256Hex(std::as_bytes(std::span(images))));
}

}  // namespace

Explainer::Explainer(Metrics& metrics, const Clock& clock)
    : metrics_(metrics),
      clock_(clock),
      seconds_(metrics.Histogram("millrace_model_explain_seconds", "Time to compute the explanations of a request.",
                                 LatencyBuckets())),
      thread_([this] { Run(); }) {}

Explainer::~Explainer() {
  std::deque<Job> waiting;
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    waiting.swap(waiting_);
    changed_.SignalAll();
  }
  for (const Job& job : waiting) job.done(absl::UnavailableError("the model service ends"));
  thread_.join();
}

Explainer::Ticket Explainer::Explain(std::shared_ptr<const LoadedVersion> version, const InferenceRequest& request,
                                     ExplainOptions options, Done done) {
  absl::Status refused;
  Ticket ticket;
  {
    MutexLock lock(&mutex_);
    ticket = ++last_ticket_;
    if (stop_) {
      refused = absl::UnavailableError("the model service ends");
    } else if (waiting_.size() >= kWaitingMax) {
      refused = absl::ResourceExhaustedError(absl::StrCat(kWaitingMax, " requests for explanations wait already"));
    } else {
      waiting_.push_back({ticket, std::move(version), request, std::move(options), std::move(done)});
      changed_.SignalAll();
      return ticket;
    }
  }
  Count(refused);
  done(refused);
  return ticket;
}

void Explainer::Cancel(Ticket ticket) {
  std::optional<Job> cancelled;
  {
    MutexLock lock(&mutex_);
    if (running_ == ticket) running_cancelled_ = true;
    const auto job = std::ranges::find(waiting_, ticket, &Job::ticket);
    if (job == waiting_.end()) return;
    cancelled = std::move(*job);
    waiting_.erase(job);
  }
  const absl::Status status = absl::CancelledError("the client has gone");
  Count(status);
  cancelled->done(status);
}

void Explainer::Run() {
  LowerThreadPriority();
  for (;;) {
    std::optional<Job> job;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !stop_) changed_.Wait(&mutex_);
      if (stop_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
      running_ = job->ticket;
      running_cancelled_ = false;
    }
    absl::StatusOr<ExplainAnswer> answer = Answer(*job);
    {
      MutexLock lock(&mutex_);
      running_ = 0;
    }
    Count(answer.status());
    job->done(std::move(answer));
  }
}

absl::StatusOr<ExplainAnswer> Explainer::Answer(const Job& job) {
  MILLRACE_RETURN_IF_ERROR(GoOn(job));
  const ModelInfo& info = job.version->info();
  MILLRACE_ASSIGN_OR_RETURN(std::vector<uint8_t> images, PixelsOf(info, job.request));
  std::string question = QuestionOf(info, job.options, images);
  if (std::optional<ExplainAnswer> known = Recall(question)) return *std::move(known);
  MILLRACE_ASSIGN_OR_RETURN(ExplainAnswer answer, Compute(job, std::move(images)));
  cache_.push_front({std::move(question), answer});
  cache_.front().answer.cached = true;
  if (cache_.size() > kCachedMax) cache_.pop_back();
  return answer;
}

absl::StatusOr<ExplainAnswer> Explainer::Compute(const Job& job, std::vector<uint8_t> images) {
  const size_t rows = images.size() / job.version->info().input.bytes();
  ExplainOptions options = job.options;
  options.go_on = [this, &job] { return GoOn(job); };
  const absl::Time start = clock_.Now();
  ExplainAnswer answer;
  MILLRACE_ASSIGN_OR_RETURN(answer.explanations, job.version->predictor().Explain(images, rows, options));
  answer.compute = clock_.Now() - start;
  answer.images = std::move(images);
  seconds_.Observe(absl::ToDoubleSeconds(answer.compute));
  return answer;
}

absl::Status Explainer::GoOn(const Job& job) const {
  if (clock_.Now() >= job.request.deadline) return absl::DeadlineExceededError("the deadline has passed");
  MutexLock lock(&mutex_);
  if (stop_) return absl::UnavailableError("the model service ends");
  if (running_cancelled_) return absl::CancelledError("the client has gone");
  return absl::OkStatus();
}

void Explainer::Count(const absl::Status& status) {
  metrics_
      .Counter("millrace_model_explanations_total", "Requests for explanations, by gRPC status code.",
               {{"result", absl::StatusCodeToString(status.code())}})
      .Increment();
}

std::optional<ExplainAnswer> Explainer::Recall(const std::string& question) {
  const auto found = std::ranges::find(cache_, question, &Cached::question);
  if (found == cache_.end()) return std::nullopt;
  cache_.splice(cache_.begin(), cache_, found);
  return found->answer;
}

}  // namespace millrace
