#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/grpc_channel.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"

namespace millrace {

// A call of any kind whose messages are given and taken as bytes: for services whose protos we do not build, and for
// peers that send nonsense. Every operation blocks until gRPC is done with it. Not thread-safe, except TryCancel.
class RawStream {
 public:
  // `method` is "/package.Service/Method".
  RawStream(std::shared_ptr<grpc::Channel> channel, const std::string& method,
            absl::Duration timeout = absl::Seconds(20))
      : stub_(std::move(channel)) {
    SetDeadline(context_, timeout);
    call_ = stub_.PrepareCall(&context_, method, &queue_);
    call_->StartCall(Tag());
    Done();
  }

  bool Write(const std::string& message) {
    const grpc::Slice slice(message);
    call_->Write(grpc::ByteBuffer(&slice, 1), Tag());
    return Done();
  }
  bool WritesDone() {
    call_->WritesDone(Tag());
    return Done();
  }
  // Nothing when the server will send no more.
  std::optional<std::string> Read() {
    grpc::ByteBuffer buffer;
    call_->Read(&buffer, Tag());
    if (!Done()) return std::nullopt;
    std::vector<grpc::Slice> slices;
    if (!buffer.Dump(&slices).ok()) return std::nullopt;
    std::string message;
    for (const grpc::Slice& slice : slices) message.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return message;
  }
  grpc::Status Finish() {
    grpc::Status status;
    call_->Finish(&status, Tag());
    Done();
    return status;
  }
  void TryCancel() { context_.TryCancel(); }

 private:
  void* Tag() { return this; }
  bool Done() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace millrace
