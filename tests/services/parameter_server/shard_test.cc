#include "services/parameter_server/shard.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/files.h"
#include "common/hashing.h"
#include "common/metrics.h"
#include "common/tensor/safetensors.h"
#include "gtest/gtest.h"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/norm_exchange.h"
#include "services/parameter_server/schedule.h"
#include "services/parameter_server/shard_checkpoint.h"
#include "tests/services/parameter_server/small_plan.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// More than one chunk per shard, and a short one.
constexpr uint64_t kParameters = 2 * kChunkElements + 1000;
constexpr uint32_t kSlots = 3;

std::vector<float> Initial() { return SlotGradient(99, 99, kParameters); }

// What a shard other than the first knows of the norms: how to reach shard 0.
class NormsOf final : public NormExchange {
 public:
  NormsOf(uint32_t shard, std::shared_ptr<NormRendezvous> rendezvous)
      : shard_(shard), rendezvous_(std::move(rendezvous)) {}
  void Sum(uint64_t step, const SquaredNorm& part, Done done) override {
    rendezvous_->Receive(shard_, step, part, [done = std::move(done)](const absl::StatusOr<SquaredNorm>& total) {
      if (total.ok()) done(*total);
    });
  }
  void Cancel() override {}
  std::string WaitingFor() const override { return rendezvous_->WaitingFor(); }

 private:
  const uint32_t shard_;
  const std::shared_ptr<NormRendezvous> rendezvous_;
};

// The shards of one job, all in this process.
struct Job {
  explicit Job(uint32_t num_shards, v1::JobPlan job_plan = SmallPlan(kParameters, kSlots)) : plan(std::move(job_plan)) {
    const std::vector<float> initial = Initial();
    const auto ranges = *ShardRanges(kParameters, num_shards);
    for (uint32_t i = 0; i < num_shards; ++i) {
      v1::ShardInfo info;
      info.set_shard(i);
      info.set_begin(ranges[i].begin);
      info.set_end(ranges[i].end);
      Shard::Options options{.plan = plan, .info = info, .num_shards = num_shards, .metrics = &metrics};
      if (num_shards > 1 && i == 0) options.norms = rendezvous = std::make_shared<NormRendezvous>(num_shards);
      if (num_shards > 1 && i > 0) options.norms = std::make_shared<NormsOf>(i, rendezvous);
      auto shard = Shard::Create(options, std::span(initial).subspan(ranges[i].begin, ranges[i].size()));
      EXPECT_THAT(shard, IsOk());
      shards.push_back(*std::move(shard));
    }
  }

  // Pushes one node's gradient to one shard; returns the last chunk's result.
  absl::StatusOr<Shard::AddResult> Push(Shard& shard, uint64_t step, SlotNode node) {
    const auto flat = NodeGradient(step, node, kSlots, kParameters);
    absl::StatusOr<Shard::AddResult> result;
    for (uint64_t offset = 0; offset < shard.range().size(); offset += kChunkElements) {
      result = PushChunk(shard, {step, node.begin, node.end, StepSamples(plan, step), offset}, flat);
      if (!result.ok()) break;
    }
    return result;
  }

  absl::StatusOr<Shard::AddResult> PushChunk(Shard& shard, const GradientChunkHeader& header,
                                             const std::vector<float>& flat) {
    const auto values =
        std::span(flat).subspan(shard.range().begin + header.offset, ChunkSize(shard.range().size(), header.offset));
    const ByteRope::Piece piece = std::as_bytes(values);
    return shard.AddGradient({header, ByteRope({&piece, 1}, 0, piece.size())});
  }

  void Steps(uint64_t begin, uint64_t end) {
    for (uint64_t step = begin; step < end; ++step) {
      for (auto& shard : shards) {
        for (const SlotNode node : {SlotNode{2, 3}, SlotNode{0, 2}}) ASSERT_THAT(Push(*shard, step, node), IsOk());
        ASSERT_THAT(shard->Apply(), IsOk());
      }
      for (auto& shard : shards) ASSERT_EQ(shard->version(), step + 1);
    }
  }

  std::string Digest() const {
    Sha256 sha256;
    for (const auto& shard : shards) sha256.Update(std::as_bytes(shard->weights().values));
    return sha256.FinishHex();
  }

  Metrics metrics{"shard_test"};
  v1::JobPlan plan;
  std::shared_ptr<NormRendezvous> rendezvous;
  std::vector<std::shared_ptr<Shard>> shards;
};

v1::JobPlan ClippedPlan(double clip_norm) {
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.mutable_spec()->set_clip_norm(clip_norm);
  return plan;
}

TEST(ShardTest, AnyNumberOfShardsMakesTheSameBits) {
  Job one(1), two(2), five(5);
  one.Steps(0, 6);
  two.Steps(0, 6);
  five.Steps(0, 6);
  EXPECT_NE(one.Digest(), Job(1).Digest());
  EXPECT_EQ(one.Digest(), two.Digest());
  EXPECT_EQ(one.Digest(), five.Digest());
  EXPECT_EQ(one.shards[0]->WaitingFor(), "nothing");
}

TEST(ShardTest, ClippedStepsHaveTheSameBitsForAnyNumberOfShards) {
  Job whole(1, ClippedPlan(10));
  whole.Steps(0, 6);
  Job unclipped(1);
  unclipped.Steps(0, 6);
  EXPECT_NE(whole.Digest(), unclipped.Digest());
  for (const uint32_t shards : {2u, 3u, 5u}) {
    Job job(shards, ClippedPlan(10));
    job.Steps(0, 6);
    EXPECT_EQ(job.Digest(), whole.Digest()) << shards << " shards";
  }
  Job loose(2, ClippedPlan(1e30));
  loose.Steps(0, 6);
  EXPECT_EQ(loose.Digest(), unclipped.Digest()) << "a norm that nothing reaches changes nothing";
}

TEST(ShardTest, AClippedGradientHasTheNormAskedFor) {
  v1::JobPlan plan = ClippedPlan(10);
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0);
  Job job(2, plan);
  const std::vector<float> initial = Initial();
  job.Steps(0, 1);
  const auto sum = NodeGradient(0, {0, kSlots}, kSlots, kParameters);
  double norm = 0, step = 0;
  for (const float value : sum) norm += std::pow(static_cast<double>(value) / 16, 2);
  ASSERT_GT(std::sqrt(norm), 1000) << "the norm to clip";
  const double scale = 10 / std::sqrt(norm);
  size_t i = 0;
  for (auto& shard : job.shards) {
    for (const float weight : shard->weights().values) {
      step += std::pow((initial[i] - weight) / 0.1, 2);
      ASSERT_NEAR(weight, initial[i] - 0.1 * scale * sum[i] / 16, 1e-6 * std::abs(initial[i]) + 1e-6) << i;
      ++i;
    }
  }
  EXPECT_NEAR(std::sqrt(step), 10, 0.1);
  EXPECT_THAT(job.metrics.Render(), HasSubstr("millrace_ps_clipped_steps_total{shard=\"1\"} 1"));
}

TEST(ShardTest, AClippedStepWaitsForTheNormOfEveryShardAndSaysSo) {
  Job job(3, ClippedPlan(10));
  for (const uint32_t shard : {0, 2}) {
    ASSERT_THAT(job.Push(*job.shards[shard], 0, {0, kSlots}), IsOk());
    ASSERT_THAT(job.shards[shard]->Apply(), IsOk());
    EXPECT_EQ(job.shards[shard]->WaitingFor(), "step 0: the norm of shard 1");
  }
  ASSERT_THAT(job.Push(*job.shards[1], 0, {0, kSlots}), IsOk());
  EXPECT_EQ(job.shards[0]->version(), 0u);
  ASSERT_THAT(job.shards[1]->Apply(), IsOk());
  for (auto& shard : job.shards) EXPECT_EQ(shard->version(), 1u);
}

TEST(ShardTest, ShardsOnThreadsOfTheirOwnClipAlike) {
  Job reference(1, ClippedPlan(10));
  reference.Steps(0, 6);
  Job job(3, ClippedPlan(10));
  {
    std::vector<std::jthread> threads;
    for (auto& shard : job.shards) {
      threads.emplace_back([&job, &shard] {
        for (uint64_t step = 0; step < 6; ++step) {
          ASSERT_THAT(job.Push(*shard, step, {2, 3}), IsOk());
          ASSERT_THAT(shard->Apply(), IsOk());
          ASSERT_THAT(job.Push(*shard, step, {0, 2}), IsOk());
          ASSERT_THAT(shard->Apply(), IsOk());
          ASSERT_TRUE(Eventually([&] { return shard->version() == step + 1; })) << shard->WaitingFor();
        }
      });
    }
  }
  EXPECT_EQ(job.Digest(), reference.Digest());
}

TEST(ShardTest, AShardThatIsGoneIsNotCalledBack) {
  Job job(2, ClippedPlan(10));
  ASSERT_THAT(job.Push(*job.shards[1], 0, {0, kSlots}), IsOk());
  ASSERT_THAT(job.shards[1]->Apply(), IsOk());
  job.shards.pop_back();
  ASSERT_THAT(job.Push(*job.shards[0], 0, {0, kSlots}), IsOk());
  ASSERT_THAT(job.shards[0]->Apply(), IsOk());
  EXPECT_EQ(job.shards[0]->version(), 1u);
}

TEST(ShardTest, AStepThatFailsBreaksTheShardAndSaysSoOnce) {
  Job job(1);
  const std::vector<float> initial = Initial();
  v1::ShardInfo info;
  info.set_end(kParameters);
  Shard::Options options{.plan = job.plan, .info = info, .metrics = &job.metrics};
  options.make_optimizer = [](const v1::OptimizerSpec& spec, uint64_t elements, uint64_t chunk, uint64_t) {
    return ShardOptimizer::Create(spec, elements + kShardAlignment, chunk);  // refuses the shard's updates
  };
  auto shard = Shard::Create(options, initial);
  ASSERT_THAT(shard, IsOk());
  std::vector<absl::Status> broken;
  (*shard)->OnBroken([&](const absl::Status& why) { broken.push_back(why); });
  ASSERT_THAT(job.Push(**shard, 0, {2, 3}), IsOk());
  EXPECT_THAT((*shard)->Apply(), IsOk());
  EXPECT_EQ(broken.size(), 0u);
  ASSERT_THAT(job.Push(**shard, 0, {0, 2}), IsOk());
  const auto fails = StatusIs(StatusCode::kInternal, HasSubstr("shard 0 could not apply step 0: an update of"));
  EXPECT_THAT((*shard)->Apply(), fails);
  EXPECT_THAT((*shard)->Apply(), fails);
  EXPECT_THAT(job.Push(**shard, 0, {0, 2}), fails);
  ASSERT_EQ(broken.size(), 1u);
  EXPECT_THAT(broken[0], fails);
  EXPECT_EQ((*shard)->version(), 0u);
}

// Two of three shards have some, and they begin in the middle of a chunk and of an aligned block.
TEST(ShardTest, StatisticsGetTheMeanOfWhatWasPushedForThem) {
  constexpr uint64_t kStatistics = kChunkElements + 777;
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.mutable_spec()->mutable_optimizer()->set_weight_decay(0.01);
  Job plain(1, plan);
  plan.set_statistics_count(kStatistics);
  constexpr uint64_t kTrainable = kParameters - kStatistics;
  const std::vector<float> initial = Initial();
  Job job(1, plan), three(3, plan);
  job.Steps(0, 1);
  plain.Steps(0, 1);
  const auto sum = NodeGradient(0, {0, kSlots}, kSlots, kParameters);
  const WeightsVersion weights = job.shards[0]->weights(), all_trained = plain.shards[0]->weights();
  for (size_t i = 0; i < kParameters; ++i) {
    const float mean = sum[i] * (1.0f / 16);
    ASSERT_EQ(weights.values[i], i < kTrainable ? all_trained.values[i] : initial[i] + mean) << i;
  }
  job.Steps(1, 6);
  three.Steps(0, 6);
  EXPECT_EQ(three.Digest(), job.Digest());
}

// With checkpoints: the optimizer knows nothing of statistics, whatever the number of shards that go on.
TEST(ShardTest, StatisticsHaveNoOptimizerStateAndSurviveResharding) {
  constexpr uint64_t kStatistics = 777;
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.mutable_spec()->mutable_optimizer()->set_weight_decay(0.01);
  plan.set_statistics_count(kStatistics);
  Job two(2, plan);
  two.Steps(0, 2);
  const TemporaryDirectory directory;
  for (auto& shard : two.shards) ASSERT_THAT(shard->SaveCheckpoint(2, directory / "2"), IsOk());
  const auto state = ReadShardCheckpoint(directory / "2", {2, kParameters, plan.spec().optimizer()}, {0, kParameters});
  ASSERT_THAT(state, IsOk());
  for (const auto& tensor : state->optimizer.tensors) {
    for (size_t i = 0; i < kParameters; ++i) {
      const bool statistic = i >= kParameters - kStatistics;
      ASSERT_EQ(tensor.values[i] == 0, statistic) << tensor.name << " " << i;
    }
  }
  v1::JobPlan resumed = plan;
  resumed.set_start_version(2);
  Job five(5, resumed);
  for (auto& shard : five.shards) ASSERT_THAT(shard->LoadCheckpoint(directory / "2"), IsOk());
  five.Steps(2, 4);
  two.Steps(2, 4);
  EXPECT_EQ(five.Digest(), two.Digest());
}

// They are no gradients: they neither count in its norm nor are scaled down with it.
TEST(ShardTest, ClippingIsNotForStatistics) {
  constexpr uint64_t kStatistics = kChunkElements + 777;
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.set_statistics_count(kStatistics);
  Job unclipped(1, plan);
  unclipped.Steps(0, 1);
  const auto sum = NodeGradient(0, {0, kSlots}, kSlots, kParameters);
  double square = 0;
  for (size_t i = 0; i < kParameters - kStatistics; ++i) square += std::pow(static_cast<double>(sum[i]) / 16, 2);

  plan.mutable_spec()->set_clip_norm(1.01 * std::sqrt(square));
  Job loose(2, plan);
  loose.Steps(0, 1);
  EXPECT_EQ(loose.Digest(), unclipped.Digest()) << "the norm of the gradient alone is not reached";

  plan.mutable_spec()->set_clip_norm(0.1 * std::sqrt(square));
  Job clipped(1, plan);
  clipped.Steps(0, 1);
  EXPECT_NE(clipped.Digest(), unclipped.Digest());
  const WeightsVersion weights = clipped.shards[0]->weights(), expected = unclipped.shards[0]->weights();
  EXPECT_TRUE(std::ranges::equal(weights.values.last(kStatistics), expected.values.last(kStatistics)));
}

TEST(ShardTest, GradientsAreDividedByTheSamplesOfTheStep) {
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0);
  Job job(1, plan);
  const std::vector<float> initial = Initial();
  job.Steps(0, 1);
  const auto sum = NodeGradient(0, {0, kSlots}, kSlots, kParameters);
  const auto weights = job.shards[0]->weights().values;
  for (size_t i = 0; i < kParameters; i += 1001) {
    EXPECT_NEAR(weights[i], initial[i] - 0.1 * sum[i] / 16, 1e-6 * std::abs(initial[i]) + 1e-7 * std::abs(sum[i]));
  }
}

TEST(ShardTest, EachStepHasTheRateOfItsSchedule) {
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0);
  plan.mutable_spec()->mutable_schedule()->set_kind(v1::LearningRateSchedule::KIND_COSINE);
  plan.mutable_spec()->mutable_schedule()->set_warmup_steps(2);
  Job job(1, plan);
  // Values at which neither the sum over slots nor the division by 16 or 8 samples rounds.
  const std::vector<float> gradient(kParameters, 32.0f);
  double weight = job.shards[0]->weights().values[7];
  for (uint64_t step = 0; step < 6; ++step) {
    for (uint64_t offset = 0; offset < kParameters; offset += kChunkElements) {
      ASSERT_THAT(job.PushChunk(*job.shards[0], {step, 0, kSlots, StepSamples(plan, step), offset}, gradient), IsOk());
    }
    ASSERT_THAT(job.shards[0]->Apply(), IsOk());
    weight -= LearningRateAt(plan, step) * 32.0 / static_cast<double>(StepSamples(plan, step));
    EXPECT_NEAR(job.shards[0]->weights().values[7], weight, 1e-6) << step;
  }
}

TEST(ShardTest, PushesAreCompleteStepsAreAppliedDuplicatesChangeNothing) {
  Job job(1);
  Shard& shard = *job.shards[0];
  EXPECT_EQ(shard.WaitingFor(), "step 0: slots 0-2");
  auto result = *job.Push(shard, 0, {0, 2});
  EXPECT_TRUE(result.push_complete);
  EXPECT_FALSE(result.chunk_complete);
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 0u);
  EXPECT_EQ(shard.WaitingFor(), "step 0: slots 2");
  result = *job.Push(shard, 0, {1, 2});  // covered
  EXPECT_TRUE(result.push_complete);
  EXPECT_FALSE(result.chunk_complete);
  result = *job.Push(shard, 0, {2, 3});
  EXPECT_TRUE(result.chunk_complete);
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 1u);
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 1u);

  const std::string digest = job.Digest();
  result = *job.Push(shard, 0, {0, 3});  // late
  EXPECT_TRUE(result.push_complete);
  EXPECT_FALSE(result.chunk_complete);
  EXPECT_EQ(job.Digest(), digest);
  EXPECT_THAT(job.metrics.Render(), HasSubstr("millrace_ps_duplicate_chunks_total{shard=\"0\"} 6"));
}

TEST(ShardTest, ChunksAreAppliedFrontToBackAsTheyBecomeComplete) {
  Job job(1), reference(1);
  reference.Steps(0, 1);
  const auto expected = reference.shards[0]->weights().values;
  Shard& shard = *job.shards[0];
  const std::string before = job.Digest();
  std::vector<std::pair<uint64_t, uint64_t>> seen;  // version, elements ready
  shard.OnApplied([&](const WeightsProgress& progress) {
    seen.emplace_back(progress.weights.version, progress.ready);
    EXPECT_EQ(progress.whole(), progress.ready == kParameters);
    EXPECT_TRUE(std::equal(expected.begin(), expected.begin() + progress.ready, progress.weights.values.begin()));
  });
  const auto gradient = NodeGradient(0, {0, kSlots}, kSlots, kParameters);
  const auto push = [&](uint64_t chunk) {
    const uint64_t offset = chunk * kChunkElements;
    const std::span<const float> values = std::span(gradient).subspan(offset, ChunkSize(kParameters, offset));
    const ByteRope::Piece piece = std::as_bytes(values);
    const auto result =
        shard.AddGradient({{0, 0, kSlots, StepSamples(job.plan, 0), offset}, ByteRope({&piece, 1}, 0, piece.size())});
    ASSERT_THAT(result, IsOk());
    EXPECT_TRUE(result->chunk_complete);
    ASSERT_THAT(shard.Apply(), IsOk());
  };
  push(1);
  EXPECT_TRUE(seen.empty());  // the front is missing
  push(0);
  EXPECT_EQ(seen, (std::vector<std::pair<uint64_t, uint64_t>>{{1, kChunkElements}, {1, 2 * kChunkElements}}));
  EXPECT_EQ(job.Digest(), before);  // version 0 is the newest that is whole
  EXPECT_EQ(shard.version(), 0u);
  push(0);  // a duplicate is not applied twice
  EXPECT_EQ(seen.size(), 2u);
  push(2);
  EXPECT_EQ(seen.back(), std::pair(uint64_t{1}, kParameters));
  EXPECT_EQ(job.Digest(), reference.Digest());
}

TEST(ShardTest, RefusesGradientsThatDoNotFit) {
  Job job(1);
  Shard& shard = *job.shards[0];
  const auto flat = SlotGradient(0, 0, kParameters);
  EXPECT_THAT(job.PushChunk(shard, {1, 0, 1, 16, 0}, flat), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(job.PushChunk(shard, {6, 0, 1, 16, 0}, flat), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(job.PushChunk(shard, {UINT64_MAX, 0, 1, 16, 0}, flat), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(job.PushChunk(shard, {0, 0, 1, 17, 0}, flat), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(job.PushChunk(shard, {0, 1, 3, 16, 0}, flat), StatusIs(StatusCode::kInvalidArgument));
  // Offsets off the grid and beyond the end, with values of any size.
  const ByteRope::Piece piece = std::as_bytes(std::span(flat)).first(4000);
  for (uint64_t offset : {uint64_t{1}, kParameters, kParameters + 1, UINT64_MAX, UINT64_MAX - 999}) {
    EXPECT_THAT(shard.AddGradient({{0, 0, 1, 16, offset}, ByteRope({&piece, 1}, 0, piece.size())}),
                StatusIs(StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(job.PushChunk(shard, {0, 0, 1, 16, 2 * kChunkElements}, flat),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("order")));
  EXPECT_EQ(shard.version(), 0u);
}

TEST(ShardTest, RefusesBadOptions) {
  Job job(1);
  const std::vector<float> weights(64);
  v1::ShardInfo info;
  info.set_end(64);
  EXPECT_THAT(Shard::Create({job.plan, info, 1, &job.metrics}, weights), IsOk());
  EXPECT_THAT(Shard::Create({job.plan, info, 1, &job.metrics}, {}), StatusIs(StatusCode::kInvalidArgument));
  info.set_begin(32);
  EXPECT_THAT(Shard::Create({job.plan, info, 1, &job.metrics}, std::span(weights).first(32)),
              StatusIs(StatusCode::kInvalidArgument));
  info.set_begin(0);
  v1::JobPlan plan = job.plan;
  plan.set_parameter_count(63);
  EXPECT_THAT(Shard::Create({plan, info, 1, &job.metrics}, weights), StatusIs(StatusCode::kInvalidArgument));
  plan = job.plan;
  plan.mutable_spec()->mutable_optimizer()->set_beta1(2);
  EXPECT_THAT(Shard::Create({plan, info, 1, &job.metrics}, weights), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ShardTest, SnapshotsStayAsTheyWereUntilReleased) {
  Job job(1);
  Shard& shard = *job.shards[0];
  job.Steps(0, 2);
  const std::string digest = job.Digest();
  job.Steps(2, 3);  // versions 2 and 3 are boundaries
  const auto held = shard.WeightsAt(2);
  ASSERT_THAT(held, IsOk());
  EXPECT_EQ(Sha256Hex(std::as_bytes(held->values)), digest);
  EXPECT_THAT(shard.WeightsAt(3), IsOk());
  shard.ReleaseSnapshot(2, false);
  shard.ReleaseSnapshot(2, false);
  EXPECT_THAT(shard.SaveCheckpoint(2, "/nowhere"), StatusIs(StatusCode::kNotFound));
}

TEST(ShardTest, TheVersionsBeforeTheNewestCanStillBeRead) {
  Job job(1);
  Shard& shard = *job.shards[0];
  std::vector<std::string> digests;
  for (uint64_t step = 0; step < 2; ++step) {
    digests.push_back(job.Digest());
    job.Steps(step, step + 1);
  }
  for (uint64_t version = 0; version < 2; ++version) {
    const auto weights = shard.WeightsAt(version);
    ASSERT_THAT(weights, IsOk());
    EXPECT_EQ(Sha256Hex(std::as_bytes(weights->values)), digests[version]);
  }
  job.Steps(2, 3);
  EXPECT_THAT(shard.WeightsAt(0), StatusIs(StatusCode::kNotFound));
}

TEST(ShardTest, TheNewestCommittedSnapshotIsKeptAndAnotherRunGoesOnFromIt) {
  Job job(2);
  job.Steps(0, 2);
  const std::string digest = job.Digest();
  for (auto& shard : job.shards) shard->ReleaseSnapshot(2, /*committed=*/true);
  job.Steps(2, 6);
  const std::string end = job.Digest();
  v1::JobPlan plan = job.plan;
  plan.set_start_version(2);
  Job next(2, plan);
  for (size_t i = 0; i < 2; ++i) {
    const auto kept = job.shards[i]->SnapshotOf(2);
    ASSERT_NE(kept, nullptr);
    job.shards[i].reset();
    ASSERT_THAT(next.shards[i]->Restore(kept), IsOk());
    EXPECT_EQ(next.shards[i]->SnapshotOf(2), kept) << "it may be needed once more";
  }
  EXPECT_EQ(next.Digest(), digest);
  next.Steps(2, 6);
  EXPECT_EQ(next.Digest(), end) << "weights and optimizer";
}

TEST(ShardTest, OfCommittedSnapshotsOnlyTheNewestStays) {
  Job job(1);
  Shard& shard = *job.shards[0];
  job.Steps(0, 2);
  EXPECT_NE(shard.SnapshotOf(2), nullptr) << "the commit may have been the last thing that the coordinator did";
  shard.ReleaseSnapshot(2, true);
  job.Steps(2, 3);
  shard.ReleaseSnapshot(3, false);
  EXPECT_NE(shard.SnapshotOf(2), nullptr);
  EXPECT_EQ(shard.SnapshotOf(3), nullptr) << "given up";
  job.Steps(3, 4);
  shard.ReleaseSnapshot(4, true);
  EXPECT_EQ(shard.SnapshotOf(2), nullptr);
  EXPECT_NE(shard.SnapshotOf(4), nullptr);
}

TEST(ShardTest, ASnapshotOfAnotherVersionOrRangeIsRefused) {
  Job job(1);
  job.Steps(0, 2);
  const auto snapshot = job.shards[0]->SnapshotOf(2);
  EXPECT_THAT(Job(1).shards[0]->Restore(snapshot), StatusIs(StatusCode::kInvalidArgument, HasSubstr("version 2")));
  v1::JobPlan plan = job.plan;
  plan.set_start_version(2);
  EXPECT_THAT(Job(2, plan).shards[0]->Restore(snapshot), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ShardTest, AVersionOfWhichThereIsACheckpointCanBeReadForEver) {
  TemporaryDirectory output;
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.set_output_dir(output.path().string());
  Job job(2, plan);
  job.Steps(0, 2);
  const std::string digest = job.Digest();
  const std::filesystem::path directory = CheckpointDirectory(output.path(), 2);
  for (auto& shard : job.shards) ASSERT_THAT(shard->SaveCheckpoint(2, directory), IsOk());
  for (auto& shard : job.shards) shard->ReleaseSnapshot(2, /*committed=*/false);
  job.Steps(2, 6);
  EXPECT_THAT(job.shards[0]->WeightsAt(2), StatusIs(StatusCode::kNotFound)) << "it is not committed";
  ASSERT_THAT(WriteFileAtomically(directory / kCheckpointManifest, "{}"), IsOk());
  Sha256 read;
  for (auto& shard : job.shards) {
    const auto weights = shard->WeightsAt(2);
    ASSERT_THAT(weights, IsOk());
    EXPECT_EQ(weights->version, 2u);
    EXPECT_EQ(shard->WeightsAt(2)->values.data(), weights->values.data()) << "it is read once";
    read.Update(std::as_bytes(weights->values));
  }
  EXPECT_EQ(read.FinishHex(), digest);
  std::filesystem::resize_file(directory / ShardFileName(0, 2), 100);
  Job restarted(2, plan);
  EXPECT_THAT(restarted.shards[0]->WeightsAt(2), StatusIs(StatusCode::kNotFound, HasSubstr("checkpoint of version 2")));
}

TEST(ShardTest, SnapshotsAreBounded) {
  Job job(1);
  job.Steps(0, 6);  // boundaries 2, 3, 4 and 6, none of them released
  EXPECT_THAT(job.shards[0]->WeightsAt(3), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(job.shards[0]->WeightsAt(4), IsOk());
  EXPECT_THAT(job.shards[0]->WeightsAt(6), IsOk());
  EXPECT_THAT(job.metrics.Render(), HasSubstr("millrace_ps_snapshots_dropped_total{shard=\"0\"} 2"));
}

TEST(ShardTest, WorkersHaveACheckpointsWeightsBeforeItsSnapshotIsTaken) {
  Job job(1);
  Shard& shard = *job.shards[0];
  int heard = 0;
  shard.OnApplied([&](const WeightsProgress& progress) {
    if (!progress.whole() || progress.weights.version != 2) return;
    ++heard;
    EXPECT_EQ(shard.SnapshotOf(2), nullptr);
    EXPECT_EQ(shard.WeightsAt(2)->values.data(), progress.weights.values.data());
  });
  job.Steps(0, 2);
  EXPECT_EQ(heard, 1);
  EXPECT_NE(shard.SnapshotOf(2), nullptr);
}

TEST(ShardTest, ASnapshotThatIsGivenUpWhileItIsTakenIsNotKept) {
  Job job(1);
  Shard& shard = *job.shards[0];
  shard.OnApplied([&](const WeightsProgress& progress) {
    if (progress.whole()) shard.ReleaseSnapshot(progress.weights.version, /*committed=*/false);
  });
  job.Steps(0, 6);
  for (const uint64_t version : {2, 3, 4, 6}) EXPECT_EQ(shard.SnapshotOf(version), nullptr);
  EXPECT_THAT(job.metrics.Render(), HasSubstr("millrace_ps_snapshots_dropped_total{shard=\"0\"} 0"));
}

class ShardCheckpointTest : public testing::Test {
 protected:
  // Writes the checkpoint of version 3 by so many shards.
  void Save(uint32_t num_shards) {
    Job job(num_shards);
    job.Steps(0, 3);
    for (auto& shard : job.shards) {
      const auto saved = shard->SaveCheckpoint(3, Directory());
      ASSERT_THAT(saved, IsOk());
      EXPECT_EQ(saved->bytes, std::filesystem::file_size(directory_ / "3" / saved->file));
      EXPECT_EQ(saved->sha256, *Sha256File(directory_ / "3" / saved->file));
    }
  }

  std::string Directory() const { return directory_ / "3"; }
  std::string File(uint32_t shard, uint32_t of) const { return directory_ / "3" / ShardFileName(shard, of); }

  v1::JobPlan ResumedPlan() const {
    v1::JobPlan plan = SmallPlan(kParameters, kSlots);
    plan.set_start_version(3);
    return plan;
  }
  absl::Status Load(Job& job) {
    for (auto& shard : job.shards) {
      if (auto status = shard->LoadCheckpoint(Directory()); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  TemporaryDirectory directory_;
};

TEST_F(ShardCheckpointTest, AnyShardingContinuesAnyOther) {
  Job whole(1);
  whole.Steps(0, 6);
  for (uint32_t writers : {1u, 2u, 3u}) {
    std::filesystem::remove_all(Directory());
    Save(writers);
    for (uint32_t readers : {1u, 2u, 4u}) {
      Job job(readers, ResumedPlan());
      ASSERT_THAT(Load(job), IsOk()) << writers << " to " << readers;
      job.Steps(3, 6);
      EXPECT_EQ(job.Digest(), whole.Digest()) << writers << " to " << readers;
    }
  }
}

TEST_F(ShardCheckpointTest, TheFirstStepContinuesToo) {
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0.9);
  plan.mutable_spec()->set_checkpoint_steps(1);
  Job whole(1, plan);
  whole.Steps(0, 1);
  ASSERT_THAT(whole.shards[0]->SaveCheckpoint(1, Directory()), IsOk());
  whole.Steps(1, 3);
  plan.set_start_version(1);
  Job resumed(2, plan);
  ASSERT_THAT(Load(resumed), IsOk());
  resumed.Steps(1, 3);
  EXPECT_EQ(resumed.Digest(), whole.Digest());
}

TEST_F(ShardCheckpointTest, FindsWhatIsMissingOrDamaged) {
  Job job(1, ResumedPlan());
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kNotFound));
  Save(2);
  const std::string before = job.Digest();
  std::filesystem::rename(File(1, 2), File(1, 2) + ".away");
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kDataLoss, HasSubstr("shard-00001")));
  std::filesystem::copy(File(0, 2), File(1, 2));  // the wrong range
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kDataLoss, HasSubstr("do not follow")));
  std::filesystem::remove(File(1, 2));
  std::filesystem::copy(File(0, 2), File(0, 1));  // files of two sets
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kDataLoss));
  std::filesystem::remove(File(0, 2));  // a set of one file that covers half
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kDataLoss, HasSubstr("cover")));
  std::filesystem::resize_file(File(0, 1), std::filesystem::file_size(File(0, 1)) - 4);
  EXPECT_THAT(Load(job), StatusIs(StatusCode::kDataLoss));
  EXPECT_EQ(job.Digest(), before);
}

TEST_F(ShardCheckpointTest, RefusesAnotherJobs) {
  Save(1);
  v1::JobPlan plan = ResumedPlan();
  plan.set_start_version(2);
  Job other_version(1, plan);
  EXPECT_THAT(Load(other_version), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("version")));
  plan = ResumedPlan();
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0.9);
  Job other_optimizer(1, plan);
  EXPECT_THAT(Load(other_optimizer), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("OPTIMIZER_KIND_ADAM")));
}

TEST_F(ShardCheckpointTest, AFailedSaveLeavesNothing) {
  Job job(1);
  job.Steps(0, 3);
  std::ofstream(Directory()) << "a file where the directory should be";
  EXPECT_FALSE(job.shards[0]->SaveCheckpoint(3, Directory()).ok());
  EXPECT_THAT(job.metrics.Render(), HasSubstr("millrace_ps_checkpoint_failures_total{shard=\"0\"} 1"));
  std::filesystem::remove(Directory());
  EXPECT_THAT(job.shards[0]->SaveCheckpoint(3, Directory()), IsOk());  // the snapshot is still there
}

v1::JobPlan StalePlan(uint32_t staleness, bool unbounded = false) {
  v1::JobPlan plan = SmallPlan(kParameters, kSlots);
  plan.mutable_spec()->set_checkpoint_steps(0);  // boundaries at 3 and 6
  plan.mutable_spec()->mutable_asynchrony()->set_staleness(staleness);
  plan.mutable_spec()->mutable_asynchrony()->set_unbounded(unbounded);
  return plan;
}

TEST(StaleShardTest, StepsAheadWaitForTheirTurn) {
  Job in_order(1, StalePlan(2)), ahead(1, StalePlan(2));
  in_order.Steps(0, 3);
  Shard& shard = *ahead.shards[0];
  for (const uint64_t step : {2, 1}) {
    ASSERT_THAT(ahead.Push(shard, step, {0, kSlots}), IsOk());
    ASSERT_THAT(shard.Apply(), IsOk());
    EXPECT_EQ(shard.version(), 0u);
    EXPECT_EQ(shard.WaitingFor(), "step 0: slots 0-2");
  }
  ASSERT_THAT(ahead.Push(shard, 0, {0, kSlots}), IsOk());
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 3u);
  EXPECT_EQ(ahead.Digest(), in_order.Digest());
}

TEST(StaleShardTest, RefusesStepsThatCannotHaveBeenComputedYet) {
  Job job(1, StalePlan(2));
  const auto too_early = [](uint64_t step, uint64_t version) {
    return StatusIs(StatusCode::kFailedPrecondition,
                    HasSubstr(absl::StrCat("gradient of step ", step, " for a shard at version ", version)));
  };
  // Step 3 begins an epoch, and nothing reaches back beyond a boundary.
  EXPECT_THAT(job.Push(*job.shards[0], 3, {0, kSlots}), too_early(3, 0));
  job.Steps(0, 2);
  EXPECT_THAT(job.Push(*job.shards[0], 3, {0, kSlots}), too_early(3, 2));
  job.Steps(2, 3);
  EXPECT_THAT(job.Push(*job.shards[0], 5, {0, kSlots}), IsOk());
  EXPECT_THAT(Job(1, StalePlan(1)).Push(*Job(1, StalePlan(1)).shards[0], 2, {0, kSlots}), too_early(2, 0));
}

TEST(StaleShardTest, KeepsTheVersionsThatStaleStepsAreComputedOn) {
  Job job(1, StalePlan(2));
  job.Steps(0, 6);
  EXPECT_THAT(job.shards[0]->WeightsAt(0), IsOk());  // 2 of the steps open, and 2 before each
}

TEST(StaleShardTest, CompensatesForTheDelay) {
  v1::JobPlan plan = StalePlan(1);
  *plan.mutable_spec()->mutable_optimizer() = Sgd(0);
  plan.mutable_spec()->mutable_asynchrony()->set_stale_gradients(v1::STALE_GRADIENTS_COMPENSATED);
  plan.mutable_spec()->mutable_asynchrony()->set_compensation(0.5);
  Job job(1, plan);
  job.Steps(0, 2);
  const std::vector<float> before = Initial();
  const auto sum = [](uint64_t step) { return NodeGradient(step, {0, kSlots}, kSlots, kParameters); };
  const std::vector<float> first = sum(0), second = sum(1);
  const auto weights = job.shards[0]->weights().values;
  double changed = 0;
  for (size_t i = 0; i < kParameters; i += 101) {
    const double w1 = before[i] - 0.1 * first[i] / 16, g = second[i] / 16;
    const double compensation = 0.5 * g * g * (w1 - before[i]);
    EXPECT_NEAR(weights[i], w1 - 0.1 * (g + compensation),
                1e-5 * (std::abs(w1) + std::abs(g) + std::abs(compensation)));
    changed = std::max(changed, std::abs(compensation / g));
  }
  EXPECT_GT(changed, 1e-3) << "the compensation would not be seen";
}

TEST(StaleShardTest, CompensationIsNotForStatistics) {
  constexpr uint64_t kStatistics = 777;
  v1::JobPlan plan = StalePlan(1);
  plan.set_statistics_count(kStatistics);
  plan.mutable_spec()->mutable_asynchrony()->set_stale_gradients(v1::STALE_GRADIENTS_COMPENSATED);
  plan.mutable_spec()->mutable_asynchrony()->set_compensation(0.5);
  Job job(1, plan);
  job.Steps(0, 2);
  std::vector<float> expected = Initial();
  for (const uint64_t step : {0, 1}) {
    const auto sum = NodeGradient(step, {0, kSlots}, kSlots, kParameters);
    for (size_t i = 0; i < kParameters; ++i) expected[i] += sum[i] * (1.0f / 16);
  }
  EXPECT_TRUE(
      std::ranges::equal(job.shards[0]->weights().values.last(kStatistics), std::span(expected).last(kStatistics)));
}

// A step whose slots were computed on these versions of the weights is applied at `rate`, by plain SGD.
void ExpectStepAtRate(Job& job, uint64_t step, const std::vector<uint64_t>& weights_versions, double rate) {
  Shard& shard = *job.shards[0];
  const WeightsVersion before = shard.weights();
  const std::vector<float> gradient(kParameters, 32.0f);  // neither the sum nor the division rounds
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    for (uint64_t offset = 0; offset < kParameters; offset += kChunkElements) {
      ASSERT_THAT(
          job.PushChunk(shard, {step, slot, slot + 1, StepSamples(job.plan, step), offset, weights_versions.at(slot)},
                        gradient),
          IsOk());
    }
  }
  ASSERT_THAT(shard.Apply(), IsOk());
  const double mean = kSlots * 32.0 / static_cast<double>(StepSamples(job.plan, step));
  EXPECT_NEAR(before.values[7] - shard.weights().values[7], rate * mean, 1e-5) << "step " << step;
}

TEST(StaleShardTest, TakesSmallerStepsTheOlderTheGradients) {
  for (const bool unbounded : {false, true}) {
    v1::JobPlan plan = StalePlan(unbounded ? 0 : 2, unbounded);
    *plan.mutable_spec()->mutable_optimizer() = Sgd(0);
    plan.mutable_spec()->mutable_asynchrony()->set_stale_gradients(v1::STALE_GRADIENTS_SMALLER_STEPS);
    Job job(1, plan);
    ExpectStepAtRate(job, 0, {0, 0, 0}, 0.1);
    ExpectStepAtRate(job, 1, {0, 0, 0}, 0.1 / 2);
    // Without a bound it is the oldest of its gradients that counts.
    ExpectStepAtRate(job, 2, unbounded ? std::vector<uint64_t>{2, 1, 2} : std::vector<uint64_t>{0, 0, 0},
                     unbounded ? 0.1 / 2 : 0.1 / 3);
    ExpectStepAtRate(job, 3, {3, 3, 3}, 0.1);  // nothing reaches back beyond the boundary
    const std::string metrics = job.metrics.Render();
    EXPECT_THAT(metrics, HasSubstr("millrace_ps_staleness_steps_count{shard=\"0\"} 12"));
    EXPECT_THAT(metrics, HasSubstr(absl::StrCat("millrace_ps_staleness_steps_sum{shard=\"0\"} ", unbounded ? 4 : 9)));
  }
}

TEST(UnboundedShardTest, AppliesWhatIsCompleteFirst) {
  Job job(1, StalePlan(0, /*unbounded=*/true));
  Shard& shard = *job.shards[0];
  ASSERT_THAT(job.Push(shard, 0, {0, 2}), IsOk());
  ASSERT_THAT(job.Push(shard, 2, {0, kSlots}), IsOk());
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 1u);
  EXPECT_EQ(shard.WaitingFor(), "step 0: slots 2");
  const std::string digest = job.Digest();
  ASSERT_THAT(job.Push(shard, 2, {0, kSlots}), IsOk()) << "again";
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(job.Digest(), digest);
  for (const SlotNode node : {SlotNode{2, 3}, SlotNode{0, 1}}) ASSERT_THAT(job.Push(shard, 0, node), IsOk());
  ASSERT_THAT(job.Push(shard, 1, {0, kSlots}), IsOk());
  ASSERT_THAT(shard.Apply(), IsOk());
  EXPECT_EQ(shard.version(), 3u);
  EXPECT_EQ(shard.WaitingFor(), "step 3: slots 0-2");
  EXPECT_THAT(shard.SaveCheckpoint(3, TemporaryDirectory().path()), IsOk()) << "3 is a boundary";
}

}  // namespace
}  // namespace millrace
