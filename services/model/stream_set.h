// The streaming calls of one kind that are open: a limit to their number, and an end to all of them in a drain.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"

namespace millrace {

// Any thread. `Stream` is a gRPC reactor that
//   takes, as the last argument of its constructor, a function which it calls with itself, last of all: it may be
//   destroyed in it;
//   has Begin(), and End(absl::Status), which may come at any time, also instead of Begin.
template <typename Stream>
class StreamSet {
 public:
  static constexpr size_t kStreamsMax = 256;  // at once; more are RESOURCE_EXHAUSTED

  // Begins a stream, or ends it at once with the reason. It lives until its call is over.
  template <typename... Arguments>
  Stream* Open(Arguments&&... arguments) {
    const auto stream = std::make_shared<Stream>(std::forward<Arguments>(arguments)...,
                                                 std::function<void(Stream*)>([this](Stream* it) { Remove(it); }));
    absl::Status refusal;
    {
      MutexLock lock(&mutex_);
      if (draining_) {
        refusal = Draining();
      } else if (streams_.size() >= kStreamsMax) {
        refusal =
            absl::ResourceExhaustedError(absl::StrCat("the limit of ", kStreamsMax, " streams at once is reached"));
      }
      streams_.emplace(stream.get(), stream);
    }
    if (refusal.ok()) {
      stream->Begin();
    } else {
      stream->End(refusal);
    }
    return stream.get();
  }

  // Ends all streams; new ones are UNAVAILABLE.
  void Drain() {
    {
      MutexLock lock(&mutex_);
      draining_ = true;
    }
    ForEach([](Stream& stream) { stream.End(Draining()); });
  }

  void ForEach(const std::function<void(Stream&)>& visit) {
    std::vector<std::shared_ptr<Stream>> streams;
    {
      MutexLock lock(&mutex_);
      streams.reserve(streams_.size());
      for (const auto& [_, stream] : streams_) streams.push_back(stream);
    }
    for (const std::shared_ptr<Stream>& stream : streams) visit(*stream);
  }

 private:
  static absl::Status Draining() { return absl::UnavailableError("the model service is shutting down"); }

  void Remove(Stream* stream) {
    std::shared_ptr<Stream> removed;  // destroyed after the lock is given back
    MutexLock lock(&mutex_);
    const auto found = streams_.find(stream);
    removed = std::move(found->second);
    streams_.erase(found);
  }

  Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_map<Stream*, std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
