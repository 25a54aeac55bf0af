// Carries weights from the shards to disk: training checkpoints, committed by their manifest, and servable versions for
// the model service. Works in the background; training goes on meanwhile. What it does for a version, and what when
// that fails, is in checkpoint_writer.h. A checkpointer belongs to one run.
//
// Threads: Commit, Export, Skip, NoteBest and Stop from any thread; they return at once. The listener is called on the
// checkpointer's own thread, without locks held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/slot_checksums.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/checkpoint_manifest.h"
#include "services/parameter_server/checkpoint_store.h"
#include "services/parameter_server/checkpoint_writer.h"
#include "services/parameter_server/shard_fleet.h"

namespace millrace {

// What the coordinator asks for.
class CheckpointQueue {
 public:
  virtual ~CheckpointQueue() = default;
  virtual void Commit(uint64_t version, CheckpointRecord record) = 0;
  // Once for every epoch end, after Commit. The version that a run resumed from is exported without Commit.
  virtual void Export(uint64_t version, std::optional<v1::Evaluation> validation,
                      std::optional<v1::Evaluation> test) = 0;
  // Instead of Export: the version is not to be served.
  virtual void Skip(uint64_t version) = 0;
  // Its version is the best so far. Comes before the Export or Skip of that version.
  virtual void NoteBest(const v1::Evaluation& validation) = 0;
  // Gives up what is queued and in progress; the listener hears no more of it.
  virtual void Stop() = 0;
};

class Checkpointer : public CheckpointQueue {
 public:
  struct Options {
    v1::JobPlan plan;
    size_t keep = 3;                                          // committed checkpoints that stay
    Metrics* metrics = nullptr;                               // required
    std::shared_ptr<const SigningKey> signing_key = nullptr;  // of exported versions; null: they are not signed
    std::function<std::vector<uint8_t>()> reference_images = nullptr;  // as CheckpointWriter::Options has it
  };

  // Store and listener must outlive the checkpointer; nobody else uses the store meanwhile.
  Checkpointer(Options options, CheckpointStore* store, std::unique_ptr<ShardFleet> fleet,
               CheckpointListener* listener);
  // Stops and waits for the thread.
  ~Checkpointer() override;

  void Commit(uint64_t version, CheckpointRecord record) override;
  void Export(uint64_t version, std::optional<v1::Evaluation> validation, std::optional<v1::Evaluation> test) override;

  void Skip(uint64_t version) override;
  void NoteBest(const v1::Evaluation& validation) override;
  void Stop() override;

 private:
  void Push(CheckpointTask task);
  void Pause(absl::Duration time);
  void Run();

  CheckpointWriter writer_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<CheckpointTask> tasks_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace millrace
