// A coordinator and a data service for tests: welcomes one worker after the other, grants what the test tells it to.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/hashing.h"
#include "common/mutex.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {

// Any thread.
class FakeCoordinator : public v1::Coordinator::Service {
 public:
  FakeCoordinator(std::string address, v1::Welcome welcome, grpc::Service* also = nullptr)
      : welcome_(std::move(welcome)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    if (also != nullptr) builder.RegisterService(also);
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override { server_->Shutdown(std::chrono::system_clock::now()); }

  // If not OK: what every connection ends with right after its welcome. Set before a worker connects.
  grpc::Status turn_away_;

  // Sent in this order, to whoever is connected.
  void Send(v1::CoordinatorMessage message) {
    MutexLock lock(&mutex_);
    outgoing_.push_back(std::move(message));
    changed_.SignalAll();
  }
  void Grant(uint64_t id, v1::Lease::Kind kind, uint64_t version, uint32_t begin, uint32_t end) {
    v1::CoordinatorMessage message;
    v1::Lease& lease = *message.mutable_lease();
    lease.set_id(id);
    lease.set_kind(kind);
    lease.set_version(version);
    lease.set_begin(begin);
    lease.set_end(end);
    Send(message);
  }
  void Finish(bool failed, const std::string& reason = "") {
    v1::CoordinatorMessage message;
    message.mutable_finish()->set_failed(failed);
    message.mutable_finish()->set_reason(reason);
    Send(message);
  }
  // Ends the open connection with UNAVAILABLE.
  void Drop() {
    MutexLock lock(&mutex_);
    ++drops_;
    changed_.SignalAll();
  }

  // The next message of a kind from the worker; messages of other kinds before it are skipped. An empty message after
  // ten seconds.
  v1::WorkerMessage Await(v1::WorkerMessage::MessageCase kind) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    MutexLock lock(&mutex_);
    while (true) {
      while (!incoming_.empty()) {
        v1::WorkerMessage message = std::move(incoming_.front());
        incoming_.pop_front();
        if (message.message_case() == kind) return message;
      }
      if (changed_.WaitWithTimeout(&mutex_, deadline - absl::Now()) && absl::Now() >= deadline) return {};
    }
  }

  grpc::Status Work(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>* stream) override {
    v1::CoordinatorMessage welcome;
    *welcome.mutable_welcome() = welcome_;
    if (!turn_away_.ok()) {
      stream->Write(welcome);
      return turn_away_;
    }
    int drops = 0;
    {
      MutexLock lock(&mutex_);
      drops = drops_;
    }
    bool ended = false;
    std::thread reader([&] {
      v1::WorkerMessage message;
      while (stream->Read(&message)) {
        MutexLock lock(&mutex_);
        incoming_.push_back(message);
        changed_.SignalAll();
      }
      MutexLock lock(&mutex_);
      ended = true;
      changed_.SignalAll();
    });
    stream->Write(welcome);
    bool dropped = false;
    while (true) {
      v1::CoordinatorMessage message;
      {
        MutexLock lock(&mutex_);
        while (outgoing_.empty() && drops == drops_ && !ended) changed_.Wait(&mutex_);
        dropped = drops != drops_;
        if (ended || dropped) break;
        message = std::move(outgoing_.front());
        outgoing_.pop_front();
      }
      stream->Write(message);
    }
    if (dropped) context->TryCancel();
    reader.join();
    return dropped ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "dropped") : grpc::Status::OK;
  }

 private:
  const v1::Welcome welcome_;
  std::unique_ptr<grpc::Server> server_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<v1::CoordinatorMessage> outgoing_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::WorkerMessage> incoming_ ABSL_GUARDED_BY(mutex_);
  int drops_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Batches of two samples a slot whose pixels tell where they belong.
class FakeDataService : public v1::DataService::Service {
 public:
  explicit FakeDataService(uint32_t image_bytes, uint32_t slots) : image_bytes_(image_bytes), slots_(slots) {}

  static constexpr uint32_t kSamples = 2;

  v1::Batch Make(v1::Split split, uint64_t epoch, uint64_t step, uint32_t slot) const {
    v1::Batch batch;
    batch.set_split(split);
    batch.set_epoch(epoch);
    batch.set_step(step);
    batch.set_slot(slot);
    batch.set_samples(kSamples);
    batch.set_step_samples(split == v1::SPLIT_TRAIN ? kSamples * slots_ : kSamples);
    batch.set_images(std::string(kSamples * image_bytes_, static_cast<char>(16 * step + 3 * slot + 1)));
    batch.set_labels(std::string({static_cast<char>(slot % 2), '\1'}));
    batch.set_checksum(Checksum64(batch.images() + batch.labels()));
    if (split == v1::SPLIT_TRAIN) batch.set_visits(1000 * (step + 1) + slot);
    return batch;
  }

  grpc::Status StreamBatches(grpc::ServerContext*,
                             grpc::ServerReaderWriter<v1::Batch, v1::BatchRequest>* stream) override {
    v1::BatchRequest request;
    while (stream->Read(&request)) {
      if (!request.has_range()) continue;
      const v1::BatchRange& range = request.range();
      for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
        for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
          stream->Write(Make(range.split(), range.epoch(), step, slot));
        }
      }
    }
    return grpc::Status::OK;
  }

 private:
  const uint32_t image_bytes_;
  const uint32_t slots_;
};

}  // namespace millrace
