#pragma once

#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "millrace/v1/model.pb.h"

namespace millrace {

// One WatchVersions call: writes the list when it begins and after changes, one write at a time, so that a client which
// does not read costs one list of memory and gets the newest when it reads again.
//
// Threads: any. Nothing blocks.
class VersionWatcher final : public grpc::ServerWriteReactor<v1::WatchVersionsResponse> {
 public:
  // `list` fills in the list as it is when it is called; any thread. `closed`: as StreamSet says.
  VersionWatcher(std::function<void(v1::WatchVersionsResponse*)> list, std::function<void(VersionWatcher*)> closed);

  void Begin() { Changed(); }
  void Changed();
  // Ends the call after the write under way, if there is one. Repeats do nothing.
  void End(const absl::Status& status);

 private:
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Write();
  void FinishIfDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::function<void(v1::WatchVersionsResponse*)> list_;
  const std::function<void(VersionWatcher*)> closed_;
  v1::WatchVersionsResponse response_;  // of the write under way, and whoever begins it

  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;  // since the list being written was filled in
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
