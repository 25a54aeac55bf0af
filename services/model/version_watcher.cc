#include "services/model/version_watcher.h"

#include <utility>

#include "common/grpc_status.h"

namespace millrace {

VersionWatcher::VersionWatcher(std::function<void(v1::WatchVersionsResponse*)> list,
                               std::function<void(VersionWatcher*)> closed)
    : list_(std::move(list)), closed_(std::move(closed)) {}

void VersionWatcher::Changed() {
  {
    MutexLock lock(&mutex_);
    if (end_) return;
    changed_ = writing_;
    if (writing_) return;
    writing_ = true;
  }
  Write();
}

void VersionWatcher::Write() {
  response_.Clear();
  list_(&response_);
  StartWrite(&response_);
}

void VersionWatcher::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    if (!ok && !end_) end_ = absl::CancelledError("the client is gone");
    writing_ = changed_ && !end_;
    changed_ = false;
    if (!writing_) return FinishIfDue();
  }
  Write();
}

void VersionWatcher::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!end_) end_ = status;
  FinishIfDue();
}

void VersionWatcher::OnCancel() { End(absl::CancelledError("the client cancelled the call")); }

void VersionWatcher::FinishIfDue() {
  if (writing_ || finished_ || !end_) return;
  finished_ = true;
  Finish(ToGrpcStatus(*end_));
}

void VersionWatcher::OnDone() {
  // All other reactions are over. The lock only makes that visible, also to the thread sanitizer.
  { MutexLock lock(&mutex_); }
  const auto closed = closed_;  // outlives the watcher
  closed(this);
}

}  // namespace millrace
