// Destroys objects on a thread of its own, for those whose destruction takes long and whose last user is in a hurry.
#pragma once

#include <memory>
#include <thread>
#include <utility>

namespace millrace {

// Any thread. Objects may outlive the janitor; their last user destroys them then.
class Janitor {
 public:
  Janitor();
  // Destroys what is waiting.
  ~Janitor();
  Janitor(const Janitor&) = delete;
  Janitor& operator=(const Janitor&) = delete;

  // The object is handed to the janitor's thread when its last reference goes.
  template <typename T>
  std::shared_ptr<T> Adopt(std::unique_ptr<T> object) {
    return std::shared_ptr<T>(object.release(), [queue = queue_](T* dead) {
      Discard(*queue, std::shared_ptr<const void>(dead, [dead](const void*) { delete dead; }));
    });
  }

 private:
  struct Queue;
  static void Discard(Queue& queue, std::shared_ptr<const void> last_reference);
  static void Run(Queue& queue);

  const std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

}  // namespace millrace
