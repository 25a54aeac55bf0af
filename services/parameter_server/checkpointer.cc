#include "services/parameter_server/checkpointer.h"

#include <utility>

#include "common/thread_priority.h"

namespace millrace {

Checkpointer::Checkpointer(Options options, CheckpointStore* store, std::unique_ptr<ShardFleet> fleet,
                           CheckpointListener* listener)
    : writer_({.plan = std::move(options.plan),
               .keep = options.keep,
               .metrics = options.metrics,
               .signing_key = std::move(options.signing_key),
               .reference_images = std::move(options.reference_images),
               .pause = [this](absl::Duration time) { Pause(time); }},
              store, std::move(fleet), listener),
      thread_([this] { Run(); }) {}

Checkpointer::~Checkpointer() {
  Stop();
  thread_.join();
}

void Checkpointer::Commit(uint64_t version, CheckpointRecord record) {
  Push({.kind = CheckpointTask::kCommit, .version = version, .record = std::move(record)});
}

void Checkpointer::Export(uint64_t version, std::optional<v1::Evaluation> validation,
                          std::optional<v1::Evaluation> test) {
  Push({.kind = CheckpointTask::kExport,
        .version = version,
        .validation = std::move(validation),
        .test = std::move(test)});
}

void Checkpointer::Skip(uint64_t version) { Push({.kind = CheckpointTask::kSkip, .version = version}); }

void Checkpointer::NoteBest(const v1::Evaluation& validation) {
  CheckpointTask task{.kind = CheckpointTask::kNoteBest, .version = validation.version()};
  task.validation = validation;
  Push(std::move(task));
}

void Checkpointer::Stop() {
  writer_.Stop();
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

// The ledger holds training at two unsettled boundaries, so the queue is bounded by six tasks.
void Checkpointer::Push(CheckpointTask task) {
  MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
  changed_.SignalAll();
}

void Checkpointer::Pause(absl::Duration time) {
  MutexLock lock(&mutex_);
  if (!stopping_) changed_.WaitWithTimeout(&mutex_, time);
}

void Checkpointer::Run() {
  LowerThreadPriority();  // digests of all parameters take a second, and training goes first
  for (;;) {
    CheckpointTask task;
    {
      MutexLock lock(&mutex_);
      while (tasks_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    writer_.Run(task);
  }
}

}  // namespace millrace
