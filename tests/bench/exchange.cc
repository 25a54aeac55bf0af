// Push and pull of the default network's 693,962 parameters, as a worker and a shard do it, against a raw gRPC stream
// that echoes messages of the same sizes. Both over a Unix socket, client and server in this process, in turn. The time
// the optimizer takes is measured by the shard and taken out. Prints one JSON object.
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/allocator.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/metrics.h"
#include "common/tensor/wire.h"
#include "grpcpp/generic/generic_stub.h"
#include "services/parameter_server/parameter_service.h"
#include "services/parameter_server/shard.h"
#include "services/worker/parameter_client.h"

namespace millrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kParameters = 693'962;
constexpr int kWarmUp = 20;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// Sends every message back as it came.
class EchoService final : public v1::ParameterServer::WithRawCallbackMethod_Exchange<v1::ParameterServer::Service> {
 public:
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Exchange(grpc::CallbackServerContext*) override {
    class Reactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
     public:
      Reactor() { StartRead(&message_); }
      void OnReadDone(bool ok) override { ok ? StartWrite(&message_) : Finish(grpc::Status::OK); }
      void OnWriteDone(bool ok) override { ok ? StartRead(&message_) : Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }

     private:
      grpc::ByteBuffer message_;
    };
    return new Reactor;
  }
};

absl::StatusOr<double> EchoSeconds(const std::string& address, int rounds) {
  EchoService service;
  auto server = GrpcServer::Start({.address = address}, {&service});
  if (!server.ok()) return server.status();
  auto values = std::make_shared<AlignedBuffer<float>>(kParameters);

  grpc::CompletionQueue queue;
  grpc::GenericStub stub(MakeChannel((*server)->address()));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(120));
  auto stream = stub.PrepareCall(&context, "/millrace.v1.ParameterServer/Exchange", &queue);
  int tag_start, tag_write, tag_read;
  auto next = [&](void** tag) {
    bool ok = false;
    return queue.Next(tag, &ok) && ok;
  };
  void* tag = nullptr;
  stream->StartCall(&tag_start);
  if (!next(&tag)) return absl::UnavailableError("the echo stream did not open");

  grpc::ByteBuffer received;
  Clock::time_point start;
  for (int round = 0; round < kWarmUp + rounds; ++round) {
    if (round == kWarmUp) start = Clock::now();
    uint64_t offset = 0, chunks_read = 0;
    auto write = [&] {
      const uint64_t count = ChunkSize(kParameters, offset);
      stream->Write(EncodeGradient({.offset = offset}, ToWire({}, values->span().subspan(offset, count), values)),
                    &tag_write);
      offset += count;
    };
    write();
    stream->Read(&received, &tag_read);
    bool writing = true;
    while (chunks_read < ChunkCount(kParameters) || writing) {
      if (!next(&tag)) return absl::UnavailableError("the echo stream broke");
      if (tag == &tag_write) {
        writing = offset < kParameters;
        if (writing) write();
      } else if (++chunks_read < ChunkCount(kParameters)) {
        stream->Read(&received, &tag_read);
      }
    }
  }
  const double seconds = Seconds(start) / rounds;
  context.TryCancel();
  grpc::Status status;
  stream->Finish(&status, &tag_start);
  next(&tag);
  (*server)->Drain(absl::Seconds(1));
  return seconds;
}

// The sum of a histogram in the Prometheus text.
double HistogramSum(const Metrics& metrics, const std::string& name) {
  std::istringstream text(metrics.Render());
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with(name + "_sum")) return std::stod(line.substr(line.rfind(' ')));
  }
  return 0;
}

absl::StatusOr<double> ExchangeSeconds(const std::string& address, int rounds) {
  Metrics metrics("bench");
  Shard::Options options;
  options.metrics = &metrics;
  v1::JobPlan& plan = options.plan;
  plan.set_run_id(1);
  plan.set_parameter_count(kParameters);
  plan.set_steps_per_epoch(1'000'000);
  plan.set_total_steps(1'000'000);
  plan.mutable_dataset()->set_train_count(1'000'000);
  plan.mutable_spec()->set_batch_size(1);
  plan.mutable_spec()->set_slots(1);
  plan.mutable_spec()->set_epochs(1);
  plan.mutable_spec()->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_SGD);
  plan.mutable_spec()->mutable_optimizer()->set_learning_rate(1e-3);
  options.info.set_end(kParameters);
  const std::vector<float> initial(kParameters);
  auto shard = Shard::Create(options, initial);
  if (!shard.ok()) return shard.status();
  ParameterService service;
  service.Serve(*std::move(shard), &metrics);
  auto server = GrpcServer::Start({.address = address}, {&service});
  if (!server.ok()) return server.status();

  AlignedBuffer<float> parameters(kParameters);
  auto gradient = std::make_shared<AlignedBuffer<float>>(kParameters);
  const WorkerMetrics worker_metrics(metrics);
  options.info.set_address((*server)->address());
  auto client = ParameterClient::Create(
      {.run_id = 1, .worker = "bench", .shards = {options.info}, .parameters = parameters.span()}, &worker_metrics);
  if (!client.ok()) return client.status();

  auto wait = [](std::string_view) { return absl::OkStatus(); };
  Clock::time_point start;
  double optimizer_before = 0;
  for (int round = 0; round < kWarmUp + rounds; ++round) {
    if (round == kWarmUp) {
      start = Clock::now();
      optimizer_before = HistogramSum(metrics, "millrace_ps_apply_seconds");
    }
    const uint64_t step = round;
    if (auto weights = (*client)->AwaitVersion(step, wait); !weights.ok()) return weights.status();
    if (auto status = (*client)->Push({.step = step, .slots = {0, 1}, .samples = 1, .gradient = gradient}, wait);
        !status.ok()) {
      return status;
    }
  }
  if (auto weights = (*client)->AwaitVersion(kWarmUp + rounds, wait); !weights.ok()) return weights.status();
  const double seconds = Seconds(start) / rounds;
  const double optimizer = (HistogramSum(metrics, "millrace_ps_apply_seconds") - optimizer_before) / rounds;
  client->reset();
  service.CloseExchanges();
  (*server)->Drain(absl::Seconds(1));
  return seconds - optimizer;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  int rounds = 300;
  CLI::App app("Push and pull against a raw gRPC echo");
  app.add_option("--rounds", rounds);
  CLI11_PARSE(app, argc, argv);

  millrace::TuneAllocator();
  char directory[] = "/tmp/millrace-bench-XXXXXX";
  if (mkdtemp(directory) == nullptr) return 1;
  const std::string prefix = std::string("unix:") + directory;
  auto echo = millrace::EchoSeconds(prefix + "/echo.sock", rounds);
  auto exchange = millrace::ExchangeSeconds(prefix + "/shard.sock", rounds);
  rmdir(directory);
  if (!echo.ok() || !exchange.ok()) {
    std::cerr << echo.status() << " " << exchange.status() << "\n";
    return 1;
  }
  std::cout << nlohmann::json{{"echo_seconds", *echo}, {"exchange_seconds", *exchange}} << std::endl;
  return 0;
}
