// A shard's memory is bounded: by its weights, its optimizer's state and one accumulator per slot, whatever the number
// of workers and the order in which they push; and by one more version for each worker that has stopped reading.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "common/metrics.h"
#include "gtest/gtest.h"
#include "services/parameter_server/schedule.h"
#include "services/parameter_server/shard.h"
#include "services/parameter_server/weights_outbox.h"
#include "tests/services/parameter_server/small_plan.h"

namespace millrace {
namespace {

constexpr uint64_t kParameters = 1 << 18;
constexpr uint64_t kChunk = 1 << 16;
constexpr uint32_t kSlots = 64;
constexpr uint64_t kSteps = 12;

// Bytes that are allocated and not freed; 0 under a sanitizer's allocator.
uint64_t BytesInUse() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

struct Measured {
  double vectors_peak = 0;  // in multiples of the shard's parameters as float32
};

// `workers` exchanges; of those the last `stuck` read nothing any more once they have begun a version, each another
// one. Slots come in an order in which as few as possible can be added.
Measured Measure(uint32_t workers, uint32_t stuck) {
  Metrics metrics("test");
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.mutable_spec()->clear_checkpoint_steps();
  plan.mutable_dataset()->set_train_count(16 * kSteps);
  plan.set_steps_per_epoch(kSteps);
  plan.set_total_steps(2 * kSteps);
  v1::ShardInfo info;
  info.set_end(kParameters);
  const std::vector<float> initial(kParameters), gradient(kParameters, 1e-3f);

  const uint64_t before = BytesInUse();
  uint64_t peak = before;
  auto shard = *Shard::Create({.plan = plan, .info = info, .metrics = &metrics, .chunk_elements = kChunk}, initial);
  std::vector<WeightsOutbox> outboxes(workers, WeightsOutbox(kChunk));
  std::vector<std::optional<WeightsOutbox::Piece>> unread(workers);  // by those who are stuck
  shard->OnApplied([&](const WeightsProgress& progress) {
    for (uint32_t i = 0; i < workers; ++i) {
      outboxes[i].Offer(progress);
      const bool stops = i + stuck >= workers && progress.weights.version == 1 + i % (kSteps - 1);
      if (unread[i].has_value()) continue;
      if (stops) {
        unread[i] = outboxes[i].Next();
      } else {
        while (outboxes[i].Next().has_value()) {
        }
      }
    }
    peak = std::max(peak, BytesInUse());
  });
  for (uint64_t step = 0; step + 1 < kSteps; ++step) {
    for (uint64_t offset = 0; offset < kParameters; offset += kChunk) {
      for (uint32_t i = 0; i < kSlots; ++i) {
        // 0, 2, 4 ... and then 63, 61, 59 ...: half of them wait for a sibling.
        const uint32_t slot = i < kSlots / 2 ? 2 * i : 2 * (kSlots - i) - 1;
        const auto values = std::as_bytes(std::span(gradient).subspan(offset, kChunk));
        const ByteRope::Piece piece = values;
        const GradientChunkHeader header{
            .step = step, .slot_begin = slot, .slot_end = slot + 1, .samples = 16, .offset = offset};
        const auto added = shard->AddGradient({header, ByteRope({&piece, 1}, 0, values.size())});
        EXPECT_TRUE(added.ok()) << added.status();
        peak = std::max(peak, BytesInUse());
        if (!added.ok() || !added->chunk_complete) continue;
        EXPECT_TRUE(shard->Apply().ok());
      }
    }
  }
  EXPECT_EQ(shard->version(), kSteps - 1);
  return {static_cast<double>(peak - before) / (sizeof(float) * kParameters)};
}

TEST(ShardMemoryTest, IsBoundedWhateverTheNumberOfWorkers) {
  if (BytesInUse() == 0) GTEST_SKIP() << "this allocator does not tell";
  // The newest version, those retained before it and the one being made; Adam's two moments; the sum and what waits for
  // it, by chunk; the messages' and the metrics' small change.
  const double weights = 1 + static_cast<double>(RetainedVersions(SmallPlan(kParameters, kSlots))) + 1;
  const double optimizer = 2, sums = 1 + kSlots * static_cast<double>(kChunk) / kParameters, constant = 0.5;
  for (const uint32_t workers : {1u, 8u, 64u}) {
    const Measured measured = Measure(workers, /*stuck=*/0);
    std::printf("%2u workers: %.2f times the parameters, at most %.2f\n", workers, measured.vectors_peak,
                weights + optimizer + sums + constant);
    EXPECT_LE(measured.vectors_peak, weights + optimizer + sums + constant);
    EXPECT_GT(measured.vectors_peak, weights + optimizer + 1) << "is anything measured?";
  }
  for (const uint32_t stuck : {1u, 8u, 64u}) {
    const Measured measured = Measure(64, stuck);
    const double pinned = std::min<double>(stuck, kSteps);
    std::printf("%2u of 64 workers have stopped reading: %.2f times\n", stuck, measured.vectors_peak);
    EXPECT_LE(measured.vectors_peak, weights + optimizer + sums + constant + pinned);
  }
}

}  // namespace
}  // namespace millrace
