#include "services/model/janitor.h"

#include <deque>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"

namespace millrace {

// Its length is bounded by the number of objects adopted.
struct Janitor::Queue {
  Mutex mutex;
  CondVar changed;
  std::deque<std::shared_ptr<const void>> dead ABSL_GUARDED_BY(mutex);
  bool closed ABSL_GUARDED_BY(mutex) = false;
};

Janitor::Janitor() : queue_(std::make_shared<Queue>()), thread_([queue = queue_] { Run(*queue); }) {}

Janitor::~Janitor() {
  {
    MutexLock lock(&queue_->mutex);
    queue_->closed = true;
    queue_->changed.Signal();
  }
  thread_.join();
}

void Janitor::Discard(Queue& queue, std::shared_ptr<const void> last_reference) {
  MutexLock lock(&queue.mutex);
  if (queue.closed) return;  // `last_reference` goes, with the lock released, in the caller
  queue.dead.push_back(std::move(last_reference));
  queue.changed.Signal();
}

void Janitor::Run(Queue& queue) {
  for (;;) {
    std::shared_ptr<const void> last_reference;
    MutexLock lock(&queue.mutex);
    while (queue.dead.empty()) {
      if (queue.closed) return;
      queue.changed.Wait(&queue.mutex);
    }
    last_reference = std::move(queue.dead.front());
    queue.dead.pop_front();
  }
}

}  // namespace millrace
