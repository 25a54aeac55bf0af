// Images per second from a running data service to one client, against gathering the same rows from memory in this
// process. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "absl/status/statusor.h"
#include "common/grpc_channel.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kBatch = 128;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// Rows of a shuffled epoch, copied batch by batch: what slicing an in-memory tensor costs.
double GatherImagesPerSecond(uint64_t images, uint64_t image_bytes) {
  std::vector<char> data(images * image_bytes, 1);
  std::vector<uint64_t> order(images);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
  uint64_t sum = 0;
  const auto start = Clock::now();
  for (uint64_t at = 0; at + kBatch <= images; at += kBatch) {
    std::vector<char> batch(kBatch * image_bytes);
    for (uint64_t row = 0; row < kBatch; ++row) {
      std::memcpy(&batch[row * image_bytes], &data[order[at + row] * image_bytes], image_bytes);
    }
    sum += static_cast<unsigned char>(batch[0]);
  }
  const double seconds = Seconds(start);
  return sum == 0 ? 0 : static_cast<double>(images / kBatch * kBatch) / seconds;
}

absl::StatusOr<double> ServiceImagesPerSecond(v1::DataService::Stub& stub, const v1::DatasetInfo& info, int epochs) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(120));
  auto stream = stub.StreamBatches(&context);
  v1::BatchRequest request;
  v1::BatchPlan& plan = *request.mutable_plan();
  plan.set_seed(1);
  plan.set_batch_size(kBatch);
  plan.set_slots(1);
  plan.set_evaluation_batch_size(kBatch);
  if (!stream->Write(request)) return absl::UnavailableError("the stream closed");

  const uint64_t steps = (info.train_count() + kBatch - 1) / kBatch;
  const uint64_t wanted = steps * epochs;
  uint64_t asked = 0, images = 0;
  constexpr uint64_t kAhead = 64;
  auto ask = [&](uint64_t count) {
    while (count > 0 && asked < wanted) {
      const uint64_t step = asked % steps;
      const uint64_t now = std::min({count, steps - step, wanted - asked});
      v1::BatchRange& range = *request.mutable_range();
      range.set_split(v1::SPLIT_TRAIN);
      range.set_epoch(asked / steps);
      range.set_step(step);
      range.set_steps(now);
      range.set_slot_begin(0);
      range.set_slot_end(1);
      if (!stream->Write(request)) return false;
      asked += now;
      count -= now;
    }
    return true;
  };
  const auto start = Clock::now();
  if (!ask(kAhead)) return absl::UnavailableError("the stream closed");
  v1::Batch batch;
  for (uint64_t received = 0; received < wanted; ++received) {
    if (!stream->Read(&batch)) return absl::UnavailableError(stream->Finish().error_message());
    images += batch.samples();
    if (received % (kAhead / 4) == 0 && !ask(kAhead / 4)) return absl::UnavailableError("the stream closed");
  }
  const double seconds = Seconds(start);
  stream->WritesDone();
  return static_cast<double>(images) / seconds;
}

absl::StatusOr<nlohmann::json> Measure(const std::string& target) {
  auto stub = v1::DataService::NewStub(MakeChannel(target));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(30));
  context.set_wait_for_ready(true);
  v1::DatasetInfo info;
  if (grpc::Status status = stub->DescribeDataset(&context, {}, &info); !status.ok()) {
    return absl::UnavailableError(status.error_message());
  }
  const uint64_t image_bytes = uint64_t{info.channels()} * info.height() * info.width();
  const double memory = GatherImagesPerSecond(info.train_count(), image_bytes);
  auto service = ServiceImagesPerSecond(*stub, info, 5);
  if (!service.ok()) return service.status();
  return nlohmann::json{{"service_images_per_second", *service},
                        {"service_batches_per_second", *service / kBatch},
                        {"memory_images_per_second", memory}};
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::string target;
  CLI::App app("Images per second from the data service against memory");
  app.add_option("--target", target)->required();
  CLI11_PARSE(app, argc, argv);
  auto result = millrace::Measure(target);
  if (!result.ok()) {
    std::cerr << result.status() << "\n";
    return 1;
  }
  std::cout << *result << std::endl;
  return 0;
}
