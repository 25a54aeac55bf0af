// A parameter server of one shard for tests: speaks plain protobuf, as any other implementation of the .proto would.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "common/tensor/wire.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/parameter.grpc.pb.h"

namespace millrace {

class FakeParameterServer : public v1::ParameterServer::Service {
 public:
  struct Push {
    uint64_t step = 0;
    uint32_t slot_begin = 0, slot_end = 0;
    uint64_t samples = 0;
    std::vector<float> gradient;
  };

  FakeParameterServer(std::string address, uint64_t begin, uint64_t end) : address_(std::move(address)) {
    info_.set_address(address_);
    info_.set_begin(begin);
    info_.set_end(end);
    weights_.resize(end - begin);
    Start();
  }
  ~FakeParameterServer() override { Stop(); }

  void Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  const v1::ShardInfo& info() const { return info_; }

  // --- What it does; set before a worker connects. ---
  std::vector<float> weights_;
  uint64_t version_ = 0;
  grpc::Status refusal_;         // answers every open
  int break_after_chunks_ = -1;  // ends the exchange with UNAVAILABLE, once, after that many gradient chunks
  bool send_garbage_ = false;    // one piece of weights beyond the range, once
  bool mute_ = false;            // takes pushes and never acknowledges
  bool silent_ = false;          // sends no weights
  bool hold_back_ = false;       // of the next weights, sends all but the first piece only after another push
  std::map<uint64_t, std::vector<float>> retained_;  // versions besides version_ that FetchWeights knows
  // After each complete push; changes weights_ and version_, which are then sent.
  std::function<void(const Push&)> apply_ = [](const Push&) {};

  std::vector<Push> pushes() const {
    MutexLock lock(&mutex_);
    return pushes_;
  }
  int exchanges() const {
    MutexLock lock(&mutex_);
    return exchanges_;
  }

  grpc::Status FetchWeights(grpc::ServerContext*, const v1::FetchWeightsRequest* request,
                            grpc::ServerWriter<v1::WeightsChunk>* writer) override {
    const auto found = retained_.find(request->version());
    if (found == retained_.end() && request->version() != version_) return {grpc::StatusCode::NOT_FOUND, "gone"};
    const std::vector<float>& weights = found == retained_.end() ? weights_ : found->second;
    v1::WeightsChunk chunk;
    chunk.set_version(request->version());
    for (uint64_t offset = 0; offset < weights.size(); offset += kChunkElements) {
      chunk.set_offset(offset);
      chunk.set_values(reinterpret_cast<const char*>(weights.data() + offset),
                       ChunkSize(weights.size(), offset) * sizeof(float));
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }

  grpc::Status Exchange(grpc::ServerContext*,
                        grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>* stream) override {
    {
      MutexLock lock(&mutex_);
      ++exchanges_;
    }
    v1::ExchangeRequest request;
    if (!stream->Read(&request) || !request.has_open()) return {grpc::StatusCode::INVALID_ARGUMENT, "no open"};
    if (!refusal_.ok()) return refusal_;
    SendWeights(stream, 0);
    Push push;
    uint64_t held_back = 0;  // weights from this offset on
    int chunks = 0;
    while (stream->Read(&request)) {
      const v1::GradientChunk& chunk = request.gradient();
      if (break_after_chunks_ == chunks++) {
        break_after_chunks_ = -1;
        return {grpc::StatusCode::UNAVAILABLE, "broken on purpose"};
      }
      if (chunk.offset() != push.gradient.size()) return {grpc::StatusCode::INVALID_ARGUMENT, "out of order"};
      push.step = chunk.step();
      push.slot_begin = chunk.slot_begin();
      push.slot_end = chunk.slot_end();
      push.samples = chunk.samples();
      const auto* values = reinterpret_cast<const float*>(chunk.values().data());
      push.gradient.insert(push.gradient.end(), values, values + chunk.values().size() / sizeof(float));
      if (push.gradient.size() < weights_.size() || mute_) continue;
      v1::ExchangeResponse ack;
      ack.mutable_ack()->set_step(push.step);
      ack.mutable_ack()->set_slot_begin(push.slot_begin);
      ack.mutable_ack()->set_slot_end(push.slot_end);
      const uint64_t before = version_;
      apply_(push);
      {
        MutexLock lock(&mutex_);
        pushes_.push_back(std::move(push));
      }
      push = Push();
      stream->Write(ack);
      if (held_back > 0) SendWeights(stream, std::exchange(held_back, 0));
      if (version_ != before) held_back = SendWeights(stream, 0);
    }
    return grpc::Status::OK;
  }

 private:
  // From `offset` on; returns where it stopped, or 0 if all is sent.
  uint64_t SendWeights(grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>* stream, uint64_t offset) {
    if (silent_) return 0;
    v1::ExchangeResponse response;
    v1::WeightsChunk& chunk = *response.mutable_weights();
    chunk.set_version(version_);
    if (send_garbage_) {
      send_garbage_ = false;
      chunk.set_offset(0);
      chunk.set_values(std::string((weights_.size() + 1) * sizeof(float), '\0'));
      stream->Write(response);
    }
    for (; offset < weights_.size(); offset += kChunkElements) {
      if (offset > 0 && std::exchange(hold_back_, false)) return offset;
      chunk.set_offset(offset);
      chunk.set_values(reinterpret_cast<const char*>(weights_.data() + offset),
                       ChunkSize(weights_.size(), offset) * sizeof(float));
      stream->Write(response);
    }
    return 0;
  }

  const std::string address_;
  v1::ShardInfo info_;
  std::unique_ptr<grpc::Server> server_;
  mutable Mutex mutex_;
  std::vector<Push> pushes_ ABSL_GUARDED_BY(mutex_);
  int exchanges_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace
