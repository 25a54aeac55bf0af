#include "services/model/batcher.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

class BatcherTest : public ::testing::Test {
 protected:
  Batcher::Request Ask(Batcher::Id id, uint32_t rows = 1, absl::Duration patience = absl::Seconds(1)) {
    return {.id = id, .lane = &lane_, .rows = rows, .row_bytes = 10, .deadline = kStart + patience};
  }
  static std::vector<Batcher::Id> Ids(const Batcher::Batch& batch) {
    std::vector<Batcher::Id> ids;
    for (const Batcher::Slice& slice : batch.slices) ids.push_back(slice.id);
    return ids;
  }

  Lane lane_;
  Lane other_;
};

TEST_F(BatcherTest, RunsAtOnceWhenIdleAndGathersWhileBusy) {
  Batcher batcher({.executors = 1, .batch_rows = 4});
  EXPECT_FALSE(batcher.Admit(Ask(1), kStart));
  const auto first = batcher.Next(kStart).batch;
  ASSERT_TRUE(first);
  EXPECT_EQ(first->release, Batcher::Release::kIdleExecutor);
  for (Batcher::Id id = 2; id <= 7; ++id) EXPECT_FALSE(batcher.Admit(Ask(id), kStart));
  EXPECT_FALSE(batcher.HasWork());
  EXPECT_FALSE(batcher.Next(kStart).batch);
  batcher.Finish(*first);
  const auto second = batcher.Next(kStart).batch;
  ASSERT_TRUE(second);
  EXPECT_THAT(Ids(*second), ElementsAre(2, 3, 4, 5));
  EXPECT_EQ(second->release, Batcher::Release::kRowsLimit);
  batcher.Finish(*second);
  const auto third = batcher.Next(kStart).batch;
  ASSERT_TRUE(third);
  EXPECT_THAT(Ids(*third), ElementsAre(6, 7));
  EXPECT_EQ(third->release, Batcher::Release::kFreedExecutor);
}

TEST_F(BatcherTest, EarliestDeadlineFirstThenFirstCome) {
  Batcher batcher({.executors = 1});
  batcher.Admit(Ask(1, 1, absl::Seconds(9)), kStart);
  batcher.Admit(Ask(2, 1, absl::Seconds(3)), kStart);
  batcher.Admit(Ask(3, 1, absl::Seconds(9)), kStart);
  batcher.Admit(Ask(4, 1, absl::Seconds(1)), kStart);
  EXPECT_THAT(Ids(*batcher.Next(kStart).batch), ElementsAre(4, 2, 1, 3));
}

TEST_F(BatcherTest, LanesAreNotMixedAndTheMostUrgentGoesFirst) {
  Batcher batcher({.executors = 2});
  batcher.Admit(Ask(1, 1, absl::Seconds(5)), kStart);
  Batcher::Request request = Ask(2, 1, absl::Seconds(3));
  request.lane = &other_;
  batcher.Admit(request, kStart);
  batcher.Admit(Ask(3, 1, absl::Seconds(4)), kStart);
  const auto first = batcher.Next(kStart).batch;
  ASSERT_TRUE(first);
  EXPECT_EQ(first->lane, &other_);
  EXPECT_THAT(Ids(*first), ElementsAre(2));
  EXPECT_THAT(Ids(*batcher.Next(kStart).batch), ElementsAre(3, 1));
}

TEST_F(BatcherTest, BytesBoundABatchAndALargerRowGoesAlone) {
  Batcher batcher({.executors = 1, .batch_rows = 32, .batch_bytes = 25});
  batcher.Admit(Ask(1, 3), kStart);
  Batcher::Request large = Ask(2, 1);
  large.row_bytes = 100;
  batcher.Admit(large, kStart);
  const auto first = batcher.Next(kStart).batch;
  EXPECT_EQ(first->rows, 2u);
  EXPECT_EQ(first->release, Batcher::Release::kBytesLimit);
  batcher.Finish(*first);
  const auto second = batcher.Next(kStart).batch;
  EXPECT_THAT(Ids(*second), ElementsAre(1));
  EXPECT_EQ(second->slices[0].first_row, 2u);
  batcher.Finish(*second);
  EXPECT_THAT(Ids(*batcher.Next(kStart).batch), ElementsAre(2));
}

TEST_F(BatcherTest, FullQueuesRefuseWithAHint) {
  lane_.time.Observe(1, absl::Milliseconds(20));
  Batcher batcher({.executors = 1, .requests = 3, .waiting_rows = 10, .waiting_bytes = 80});
  EXPECT_EQ(batcher.Admit(Ask(1, 11), kStart)->reason, Batcher::Refusal::Reason::kRows);
  EXPECT_EQ(batcher.Admit(Ask(1, 9), kStart)->reason, Batcher::Refusal::Reason::kBytes);
  EXPECT_FALSE(batcher.Admit(Ask(1), kStart));
  const auto running = batcher.Next(kStart).batch;
  EXPECT_FALSE(batcher.Admit(Ask(2), kStart));
  EXPECT_FALSE(batcher.Admit(Ask(3), kStart));
  const auto refusal = batcher.Admit(Ask(4), kStart + absl::Milliseconds(5));
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->reason, Batcher::Refusal::Reason::kRequests);
  EXPECT_EQ(refusal->retry_after, absl::Milliseconds(15));  // when the one that runs should be done
  batcher.Close(2);
  EXPECT_FALSE(batcher.Admit(Ask(4), kStart));
}

TEST_F(BatcherTest, WhatCannotBeDoneInTimeIsRefusedAtOnce) {
  for (uint32_t rows : {1, 2, 4}) lane_.time.Observe(rows, absl::Milliseconds(10) * rows);
  Batcher batcher({.executors = 1, .batch_rows = 4});
  // Runs at once, so it may try: an estimate that is too high would never be put right.
  EXPECT_FALSE(batcher.Admit(Ask(1, 1, absl::Milliseconds(5)), kStart));
  const auto running = batcher.Next(kStart).batch;
  EXPECT_EQ(batcher.Admit(Ask(2, 3, absl::Milliseconds(44)), kStart)->reason, Batcher::Refusal::Reason::kLate)
      << "10 + 30 leave less than an eighth of the time";
  EXPECT_FALSE(batcher.Admit(Ask(2, 3, absl::Milliseconds(48)), kStart));
  const auto late = batcher.Admit(Ask(3, 2, absl::Milliseconds(56)), kStart);
  ASSERT_TRUE(late);  // its second row is in the second batch: 10 + 40 + 10
  EXPECT_EQ(late->reason, Batcher::Refusal::Reason::kLate);
  EXPECT_EQ(late->retry_after, absl::Milliseconds(11));  // 60 + 7 - 56
  EXPECT_FALSE(batcher.Admit(Ask(4, 1, absl::Milliseconds(60)), kStart));
  EXPECT_FALSE(batcher.Admit(Ask(5, 1, absl::Milliseconds(24)), kStart));  // overtakes
  EXPECT_EQ(batcher.Admit(Ask(6, 1, absl::ZeroDuration()), kStart)->reason, Batcher::Refusal::Reason::kLate);
}

TEST_F(BatcherTest, TheMarginFollowsWhatComesLate) {
  lane_.time.Observe(1, absl::Milliseconds(10));
  Batcher batcher({.executors = 1});
  batcher.Admit(Ask(1), kStart);
  const auto running = batcher.Next(kStart).batch;
  const auto fits = [&](absl::Duration patience) {
    const bool admitted = !batcher.Admit(Ask(2, 1, patience), kStart);
    batcher.Close(2);
    return admitted;
  };
  const auto end = [&](bool late, absl::Duration patience = absl::Seconds(1)) {
    ASSERT_FALSE(batcher.Admit(Ask(3, 1, patience), kStart));
    batcher.ObserveEnd(3, late);
    batcher.Close(3);
  };
  EXPECT_TRUE(fits(absl::Milliseconds(24)));  // 10 + 10 and an eighth
  for (int i = 0; i < 300; ++i) batcher.ObserveEnd(1, true);
  EXPECT_TRUE(fits(absl::Milliseconds(24))) << "it was admitted whatever its time";
  for (int i = 0; i < 2; ++i) end(true);
  EXPECT_FALSE(fits(absl::Milliseconds(24)));
  EXPECT_TRUE(fits(absl::Milliseconds(28)));  // 4 ms more
  for (int i = 0; i < 300; ++i) end(true);
  EXPECT_FALSE(fits(absl::Milliseconds(78)));
  EXPECT_TRUE(fits(absl::Milliseconds(82))) << "a quarter of the time is always enough";
  for (int i = 0; i < 10'000; ++i) end(false, absl::Seconds(2));
  EXPECT_FALSE(fits(absl::Milliseconds(78))) << "who has much time says nothing of it";
  for (int i = 0; i < 10'000; ++i) end(false);
  EXPECT_TRUE(fits(absl::Milliseconds(24))) << "one in two hundred may be late";
}

TEST_F(BatcherTest, ABatchTakesNoRowsThatMakeItsFirstRequestLate) {
  for (uint32_t rows : {1, 2, 4, 8}) lane_.time.Observe(rows, absl::Milliseconds(10) * rows);
  Batcher batcher({.executors = 1, .batch_rows = 8});
  batcher.Admit(Ask(1), kStart);
  const auto running = batcher.Next(kStart).batch;
  EXPECT_FALSE(batcher.Admit(Ask(2, 2, absl::Milliseconds(48)), kStart));  // latest end after 45
  EXPECT_FALSE(batcher.Admit(Ask(3, 3, absl::Milliseconds(90)), kStart));
  batcher.Finish(*running);
  const auto second = batcher.Next(kStart + absl::Milliseconds(10)).batch;
  EXPECT_THAT(Ids(*second), ElementsAre(2, 3));
  EXPECT_EQ(second->rows, 3u) << "a fourth row would end it after 50";
  EXPECT_EQ(second->release, Batcher::Release::kDeadline);
  batcher.Finish(*second);
  EXPECT_FALSE(batcher.Admit(Ask(4, 1, absl::Milliseconds(160)), kStart));
  const auto third = batcher.Next(kStart + absl::Milliseconds(80)).batch;
  EXPECT_THAT(Ids(*third), ElementsAre(3, 4)) << "the first is late anyhow";
  EXPECT_EQ(third->release, Batcher::Release::kFreedExecutor);
}

TEST_F(BatcherTest, ExpiredRowsAreDroppedWhenTheBatchIsFormed) {
  Batcher batcher({.executors = 1, .batch_rows = 4});
  batcher.Admit(Ask(1, 6, absl::Seconds(2)), kStart);
  const auto running = batcher.Next(kStart).batch;
  batcher.Admit(Ask(2, 1, absl::Seconds(1)), kStart);
  batcher.Admit(Ask(3, 1, absl::Seconds(9)), kStart);
  batcher.Finish(*running);
  const auto decision = batcher.Next(kStart + absl::Seconds(2));
  EXPECT_THAT(decision.expired, ElementsAre(2, 1));
  EXPECT_THAT(Ids(*decision.batch), ElementsAre(3));
  EXPECT_EQ(batcher.open(), 1u);
}

// Random requests, time, ends of batches and cancellations against a plain list of rows.
RC_GTEST_PROP(Batcher, NothingIsLostNothingComesTwiceAndEveryBoundHolds, ()) {
  const Batcher::Limits limits{.executors = *rc::gen::inRange(1, 4),
                               .batch_rows = *rc::gen::inRange<uint32_t>(1, 9),
                               .batch_bytes = *rc::gen::inRange<uint64_t>(1, 40),
                               .requests = *rc::gen::inRange<uint32_t>(1, 20),
                               .waiting_rows = *rc::gen::inRange<uint64_t>(1, 60),
                               .waiting_bytes = *rc::gen::inRange<uint64_t>(10, 300)};
  Batcher batcher(limits);
  std::vector<Lane> lanes(2);
  struct Model {
    Batcher::Request request;
    absl::Time came;
    uint64_t arrival = 0;
    uint32_t given = 0;  // rows, always from the front
  };
  std::map<Batcher::Id, Model> waiting;  // rows left
  std::map<Batcher::Id, Model> running;  // all given out, not closed
  std::vector<Batcher::Batch> batches;
  absl::Time now = kStart;
  Batcher::Id next_id = 1;
  const auto urgency = [](const Model& model) { return std::make_pair(model.request.deadline, model.arrival); };

  const auto admit = [&] {
    const Batcher::Request request{.id = next_id++,
                                   .lane = &lanes[*rc::gen::inRange(0, 2)],
                                   .rows = *rc::gen::inRange<uint32_t>(1, 20),
                                   .row_bytes = *rc::gen::inRange<uint64_t>(0, 12),
                                   .deadline = now + absl::Milliseconds(*rc::gen::inRange(0, 100))};
    const bool idle = batches.size() < static_cast<size_t>(limits.executors) && waiting.empty();
    const size_t open = waiting.size() + running.size();
    uint64_t rows = request.rows, bytes = request.rows * request.row_bytes;
    for (const auto& [id, model] : waiting) {
      rows += model.request.rows - model.given;
      bytes += (model.request.rows - model.given) * model.request.row_bytes;
    }
    const bool fits = open < limits.requests && rows <= limits.waiting_rows && bytes <= limits.waiting_bytes;
    const auto refusal = batcher.Admit(request, now);
    if (refusal) {
      RC_ASSERT(refusal->retry_after > absl::ZeroDuration());
      if (fits) {
        RC_ASSERT(refusal->reason == Batcher::Refusal::Reason::kLate);
        RC_ASSERT(!idle || request.deadline <= now);
      }
      return;
    }
    RC_ASSERT(fits && request.deadline > now);
    waiting[request.id] = {.request = request, .came = now, .arrival = request.id, .given = 0};
  };
  const auto next = [&] {
    const Batcher::Decision decision = batcher.Next(now);
    const bool free = batches.size() < static_cast<size_t>(limits.executors);
    for (const Batcher::Id id : decision.expired) {
      RC_ASSERT(waiting.contains(id));
      RC_ASSERT(waiting[id].request.deadline <= now);
      waiting.erase(id);
    }
    RC_ASSERT(decision.batch.has_value() == (free && !waiting.empty()));  // work-conserving
    if (!decision.batch) return;
    const Batcher::Batch& batch = *decision.batch;
    const auto first = std::min_element(waiting.begin(), waiting.end(), [&](const auto& a, const auto& b) {
      return urgency(a.second) < urgency(b.second);
    });
    RC_ASSERT(batch.slices.front().id == first->first);
    const Model urgent = first->second;
    RC_ASSERT(batch.lane == first->second.request.lane);
    uint32_t rows = 0;
    uint64_t bytes = 0;
    std::pair<absl::Time, uint64_t> last(absl::InfinitePast(), 0);
    for (const Batcher::Slice& slice : batch.slices) {
      RC_ASSERT(waiting.contains(slice.id));
      Model& model = waiting[slice.id];
      RC_ASSERT(model.request.lane == batch.lane && model.request.deadline > now);
      RC_ASSERT(last < urgency(model));
      last = urgency(model);
      RC_ASSERT(slice.rows > 0 && slice.first_row == model.given);
      model.given += slice.rows;
      RC_ASSERT(model.given <= model.request.rows);
      rows += slice.rows;
      bytes += slice.rows * model.request.row_bytes;
      if (model.given < model.request.rows) continue;
      running[slice.id] = model;
      waiting.erase(slice.id);
    }
    RC_ASSERT(rows == batch.rows && rows <= limits.batch_rows);
    RC_ASSERT(bytes <= limits.batch_bytes || rows == 1u);
    // No less than could be: whoever of the lane still waits, waits for a reason.
    for (const auto& [id, model] : waiting) {
      if (model.request.lane != batch.lane) continue;
      if (batch.release == Batcher::Release::kDeadline) {
        // Half of the margin, which is from an eighth to three quarters: what expired has taught it.
        const absl::Time deadline = urgent.request.deadline;
        const absl::Duration time = deadline - urgent.came;
        RC_ASSERT(now + batch.lane->time.Estimate(batch.rows) <= deadline - time / 16);
        RC_ASSERT(now + batch.lane->time.Estimate(batch.rows + 1) > deadline - time * 3 / 8);
        continue;
      }
      RC_ASSERT(batch.release == Batcher::Release::kRowsLimit || batch.release == Batcher::Release::kBytesLimit);
    }
    batches.push_back(batch);
    RC_ASSERT(batches.size() <= static_cast<size_t>(limits.executors));
  };
  const auto finish = [&] {
    if (batches.empty()) return;
    const auto which = batches.begin() + *rc::gen::inRange<int>(0, static_cast<int>(batches.size()));
    which->lane->time.Observe(which->rows, absl::Milliseconds(*rc::gen::inRange(0, 20)));
    batcher.Finish(*which);
    batches.erase(which);
  };
  const auto close = [&] {
    const Batcher::Id id = *rc::gen::inRange<Batcher::Id>(1, next_id + 1);
    batcher.Close(id);
    waiting.erase(id);
    running.erase(id);
  };
  const int steps = *rc::gen::inRange(1, 120);
  for (int step = 0; step < steps; ++step) {
    switch (*rc::gen::inRange(0, 8)) {
      case 0:
        now += absl::Milliseconds(*rc::gen::inRange(0, 30));
        break;
      case 1:
        close();
        break;
      case 2:
      case 3:
        finish();
        break;
      case 4:
      case 5:
        next();
        break;
      default:
        admit();
    }
    uint64_t rows = 0;
    for (const auto& [id, model] : waiting) rows += model.request.rows - model.given;
    RC_ASSERT(batcher.waiting_rows() == rows);
    RC_ASSERT(batcher.open() == waiting.size() + running.size());
    RC_ASSERT(batcher.running() == static_cast<int>(batches.size()));
  }
  // Left alone, all that waits goes out.
  while (!waiting.empty() || !batches.empty()) {
    next();
    finish();
  }
}

}  // namespace
}  // namespace millrace
