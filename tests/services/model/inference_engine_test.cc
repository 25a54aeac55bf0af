#include "services/model/inference_engine.h"

#include <sched.h>

#include <atomic>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/retry_hint.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/eventually.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint8_t kPoison = 255;

// A row's answer is its first pixel, kFakeClasses times. Waits at its door while told to; fails on kPoison.
class EchoPredictor : public Predictor {
 public:
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const override {
    return PredictAny(images, rows);
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float> images, size_t rows) const override {
    return PredictAny(images, rows);
  }
  absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t>, size_t,
                                                   const ExplainOptions&) const override {
    return absl::UnimplementedError("explaining");
  }

  mutable std::atomic<int> entered = 0;
  mutable std::atomic<size_t> last_rows = 0;
  mutable std::atomic<std::thread::id> last_thread;
  std::atomic<bool> blocked = false;

 private:
  template <typename Pixel>
  absl::StatusOr<std::vector<float>> PredictAny(std::span<const Pixel> images, size_t rows) const {
    ++entered;
    while (blocked) std::this_thread::yield();
    std::vector<float> values;
    for (size_t row = 0; row < rows; ++row) {
      const Pixel pixel = images[row * info_.input.bytes()];
      if (pixel == kPoison) return absl::InternalError("predicting: poison");
      values.insert(values.end(), info_.classes, pixel);
    }
    last_rows = rows;
    last_thread = std::this_thread::get_id();
    return values;
  }

  const ModelInfo info_ = FakeInfo("mnist", 6);
};

class InferenceEngineTest : public ::testing::Test {
 protected:
  using Result = absl::StatusOr<InferenceAnswer>;

  // A request with its pixels, so that they live until the answer.
  struct Pending {
    std::vector<uint8_t> pixels;
    std::promise<Result> promise;
    std::future<Result> future = promise.get_future();
    InferenceEngine::Ticket ticket = 0;
  };

  InferenceEngineTest() {
    auto predictor = std::make_unique<EchoPredictor>();
    predictor_ = predictor.get();
    version_ = std::make_shared<const LoadedVersion>(std::move(predictor), model_metrics_->AddVersion("mnist", 6), 0);
  }
  ~InferenceEngineTest() override {
    if (version_ != nullptr) predictor_->blocked = false;
  }

  static std::vector<uint8_t> Pixels(const std::vector<uint8_t>& first) {
    std::vector<uint8_t> pixels(first.size() * kFakeShape.bytes());
    for (size_t row = 0; row < first.size(); ++row) pixels[row * kFakeShape.bytes()] = first[row];
    return pixels;
  }
  std::unique_ptr<Pending> Ask(InferenceEngine& engine, std::vector<uint8_t> pixels, InferenceRequest request) {
    auto pending = std::make_unique<Pending>();
    pending->pixels = std::move(pixels);
    request.input = pending->pixels;
    pending->ticket = engine.Infer(version_, request, [promise = &pending->promise](Result result) {
      promise->set_value(std::move(result));  // throws if it is called twice
    });
    return pending;
  }
  std::unique_ptr<Pending> Ask(InferenceEngine& engine, const std::vector<uint8_t>& first,
                               absl::Time deadline = absl::InfiniteFuture(), bool deterministic = false) {
    InferenceRequest request;
    request.rows = static_cast<uint32_t>(first.size());
    request.deadline = deadline;
    request.deterministic = deterministic;
    return Ask(engine, Pixels(first), request);
  }
  // Holds an executor until blocked is false again. Asked from a thread of its own: it may run there.
  std::thread Occupy(InferenceEngine& engine) {
    predictor_->blocked = true;
    const int before = predictor_->entered;
    std::thread thread([this, &engine] { EXPECT_THAT(Ask(engine, {9})->future.get(), IsOk()); });
    EXPECT_TRUE(Eventually([&] { return predictor_->entered > before; }));
    return thread;
  }
  static std::vector<uint8_t> First(const InferenceAnswer& answer) {
    std::vector<uint8_t> first;
    for (size_t i = 0; i < answer.values.size(); i += kFakeClasses) {
      first.push_back(static_cast<uint8_t>(answer.values[i]));
    }
    return first;
  }

  FakeClock clock_;
  Metrics metrics_{"test"};
  std::shared_ptr<ModelMetrics> model_metrics_ = ModelMetrics::Create(metrics_);
  EchoPredictor* predictor_;
  std::shared_ptr<const LoadedVersion> version_;
};

TEST_F(InferenceEngineTest, AnIdleEngineAnswersOnTheCallersThreadAndCounts) {
  InferenceEngine engine({.executors = 1}, clock_);
  const auto pending = Ask(engine, {1, 2, 3});
  const Result result = pending->future.get();
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(predictor_->last_thread.load(), std::this_thread::get_id());
  EXPECT_EQ(First(*result), (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(result->rows, 3u);
  EXPECT_EQ(result->batch_rows, 3u);
  EXPECT_EQ(version_->requests(), 1u);
  const std::string text = metrics_.Render();
  for (const char* series : {"millrace_model_requests_total{code=\"OK\",model=\"mnist\",version=\"6\"} 1",
                             "millrace_model_requests_in_flight{model=\"mnist\",version=\"6\"} 0",
                             "millrace_model_batches_total{model=\"mnist\",release=\"idle_executor\",version=\"6\"} 1",
                             "millrace_model_batch_rows_sum{model=\"mnist\",version=\"6\"} 3",
                             "millrace_model_batch_wait_seconds_count{model=\"mnist\",version=\"6\"} 1",
                             "millrace_model_expired_rows_executed_total{model=\"mnist\",version=\"6\"} 0"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST_F(InferenceEngineTest, AnUnloadedVersionLeavesNoSeries) {
  {
    InferenceEngine engine({.executors = 1}, clock_);
    EXPECT_THAT(Ask(engine, {1})->future.get(), IsOk());
  }
  EXPECT_THAT(metrics_.Render(), HasSubstr("version=\"6\""));
  version_.reset();
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("version=\"6\"")));
}

TEST_F(InferenceEngineTest, SizesAreCheckedAndTheMessageNamesThem) {
  InferenceEngine engine({.executors = 1}, clock_);
  InferenceRequest request;
  request.rows = 3;
  EXPECT_THAT(Ask(engine, Pixels({1, 2}), request)->future.get(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model mnist takes uint8 [rows, 1, 2, 3]: 18 bytes for rows = 3, got 12")));
  EXPECT_THAT(Ask(engine, std::vector<uint8_t>(kPredictRowsMax + 1))->future.get(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1024")));
  EXPECT_EQ(predictor_->entered, 0);
}

TEST_F(InferenceEngineTest, FloatsShareBatchesWithFloatsOnly) {
  InferenceEngine engine({.executors = 1, .batch_rows = 8}, clock_);
  InferenceRequest floats;
  floats.kind = InferenceRequest::Kind::kFloats;
  const auto ask = [&](float first, bool deterministic) {
    floats.deterministic = deterministic;
    std::vector<float> pixels(kFakeShape.bytes());
    pixels[0] = first;
    const auto* bytes = reinterpret_cast<const uint8_t*>(pixels.data());
    return Ask(engine, std::vector<uint8_t>(bytes, bytes + pixels.size() * sizeof(float)), floats);
  };
  std::thread busy = Occupy(engine);
  const auto one = ask(1.5f, false), bytes = Ask(engine, {7}), two = ask(2.5f, false);
  const auto alone = ask(3.5f, true), bytes_alone = Ask(engine, {8}, absl::InfiniteFuture(), true);
  predictor_->blocked = false;
  for (const auto& [pending, value, batch_rows] :
       {std::tuple(&one, 1.5f, 2u), {&bytes, 7.f, 1u}, {&two, 2.5f, 2u}, {&alone, 3.5f, 1u}, {&bytes_alone, 8.f, 1u}}) {
    const Result result = (*pending)->future.get();
    ASSERT_THAT(result, IsOk());
    EXPECT_EQ(result->values[0], value);
    EXPECT_EQ(result->batch_rows, batch_rows) << value;
  }
  EXPECT_THAT(Ask(engine, Pixels({1}), floats)->future.get(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("takes float32 [rows, 1, 2, 3]: 24 bytes")));
  busy.join();
}

TEST_F(InferenceEngineTest, ImagesAreDecodedAndABadOneFailsAlone) {
  InferenceEngine engine({.executors = 1}, clock_);
  const Bytes samples = Draw(30, 20, [](uint32_t x, uint32_t) { return static_cast<int>(x); });
  const Bytes png = EncodePng(30, 20, PNG_FORMAT_GRAY, samples.data());
  InferenceRequest image;
  image.kind = InferenceRequest::Kind::kImage;
  std::thread busy = Occupy(engine);
  const auto good = Ask(engine, png, image);
  const auto bad = Ask(engine, Bytes(png.begin(), png.end() - 1), image);
  const auto good_too = Ask(engine, png, image);
  image.rows = 2;
  EXPECT_THAT(Ask(engine, png, image)->future.get(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows")));
  predictor_->blocked = false;
  const Result result = good->future.get();
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->rows, 1u);
  EXPECT_EQ(result->batch_rows, 2u);
  EXPECT_THAT(bad->future.get(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("corrupt PNG")));
  EXPECT_THAT(good_too->future.get(), IsOk());
  busy.join();
}

TEST_F(InferenceEngineTest, RequestsGatherWhileTheExecutorIsBusyAndEachGetsItsOwnAnswer) {
  InferenceEngine engine({.executors = 1, .batch_rows = 8}, clock_);
  std::thread busy = Occupy(engine);
  std::vector<std::unique_ptr<Pending>> pending;
  for (uint8_t i = 0; i < 20; i += 2) pending.push_back(Ask(engine, {i, static_cast<uint8_t>(i + 1)}));
  predictor_->blocked = false;
  for (uint8_t i = 0; i < 20; i += 2) {
    const Result result = pending[i / 2]->future.get();
    ASSERT_THAT(result, IsOk());
    EXPECT_EQ(First(*result), (std::vector<uint8_t>{i, static_cast<uint8_t>(i + 1)}));
  }
  busy.join();
  EXPECT_EQ(predictor_->entered, 1 + 3);  // 8, 8 and 4 rows
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_batches_total{model=\"mnist\",release=\"rows_limit\",version=\"6\"} 2"));
}

TEST_F(InferenceEngineTest, LargeRequestsAreSpreadOverBatchesAndPutTogetherAgain) {
  InferenceEngine engine({.executors = 2, .batch_rows = 8}, clock_);
  std::vector<uint8_t> first(100);
  for (size_t row = 0; row < first.size(); ++row) first[row] = static_cast<uint8_t>(row);
  const Result result = Ask(engine, first)->future.get();
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(First(*result), first);
  EXPECT_EQ(result->batch_rows, 8u);
  EXPECT_EQ(predictor_->entered, 13);
}

TEST_F(InferenceEngineTest, DeterministicRowsAreComputedByThemselves) {
  InferenceEngine engine({.executors = 1}, clock_);
  std::thread busy = Occupy(engine);
  const auto deterministic = Ask(engine, {1, 2, 3}, absl::InfiniteFuture(), true);
  predictor_->blocked = false;
  EXPECT_EQ(First(*deterministic->future.get()), (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(predictor_->last_rows, 1u);
  busy.join();
}

TEST_F(InferenceEngineTest, ARowThatTheModelFailsOnFailsAlone) {
  InferenceEngine engine({.executors = 1}, clock_);
  std::thread busy = Occupy(engine);
  const auto good = Ask(engine, {1, 2});
  const auto bad = Ask(engine, {3, kPoison});
  const auto good_too = Ask(engine, {4});
  predictor_->blocked = false;
  EXPECT_EQ(First(*good->future.get()), (std::vector<uint8_t>{1, 2}));
  EXPECT_THAT(bad->future.get(), StatusIs(absl::StatusCode::kInternal, HasSubstr("row 1: predicting: poison")));
  EXPECT_EQ(First(*good_too->future.get()), (std::vector<uint8_t>{4}));
  busy.join();
}

TEST_F(InferenceEngineTest, NothingIsComputedForAClientThatIsGone) {
  InferenceEngine engine({.executors = 1, .requests = 8}, clock_);
  EXPECT_THAT(Ask(engine, {1}, clock_.Now())->future.get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  std::thread busy = Occupy(engine);
  const auto expires = Ask(engine, {1}, clock_.Now() + absl::Seconds(1));
  const auto expires_unsaid = Ask(engine, {1});
  const auto cancelled = Ask(engine, {1});
  EXPECT_EQ(engine.in_flight(), 4);
  engine.Cancel(cancelled->ticket);
  EXPECT_THAT(cancelled->future.get(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(engine.in_flight(), 3);
  engine.Cancel(cancelled->ticket);
  clock_.Advance(InferenceEngine::kWaitMax);
  predictor_->blocked = false;
  EXPECT_THAT(expires->future.get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(expires_unsaid->future.get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  busy.join();
  EXPECT_EQ(predictor_->entered, 1);
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_expired_rows_executed_total{model=\"mnist\",version=\"6\"} 0"));
}

TEST_F(InferenceEngineTest, ACallThatRunsIsWaitedForBecauseItsInputIsRead) {
  InferenceEngine engine({.executors = 2, .batch_rows = 4}, clock_);
  std::thread busy = Occupy(engine);
  const auto running = Ask(engine, {1, 2, 3, 4, 5, 6});  // four rows run on the other executor, two wait
  EXPECT_TRUE(Eventually([&] { return predictor_->entered == 2; }));
  engine.Cancel(running->ticket);
  EXPECT_EQ(running->future.wait_for(std::chrono::milliseconds(5)), std::future_status::timeout);
  predictor_->blocked = false;
  EXPECT_THAT(running->future.get(), StatusIs(absl::StatusCode::kCancelled));
  busy.join();
  EXPECT_EQ(predictor_->entered, 2);
}

TEST_F(InferenceEngineTest, RefusalsSayWhenToTryAgainAndAreCounted) {
  InferenceEngine engine({.executors = 1, .requests = 2}, clock_);
  std::thread busy = Occupy(engine);
  const auto waiting = Ask(engine, {1});
  const Result full = Ask(engine, {1})->future.get();
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue_requests")));
  EXPECT_GE(RetryAfter(full.status()).value_or(absl::ZeroDuration()), absl::Milliseconds(1));
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_rejected_total{model=\"mnist\",reason=\"queue_requests\",version=\"6\"} 1"));
  predictor_->blocked = false;
  EXPECT_THAT(waiting->future.get(), IsOk());
  busy.join();
}

TEST_F(InferenceEngineTest, WhatRunsAtOnceDoesNotTeachTheMargin) {
  InferenceEngine engine({.executors = 1}, clock_);
  for (int i = 0; i < 20; ++i) {
    const int before = predictor_->entered;
    predictor_->blocked = true;
    std::thread caller([&] { Ask(engine, {1}, clock_.Now() + absl::Milliseconds(10))->future.wait(); });
    EXPECT_TRUE(Eventually([&] { return predictor_->entered > before; }));
    clock_.Advance(absl::Milliseconds(11));  // it had too little time, whatever the others have
    predictor_->blocked = false;
    caller.join();
  }
  std::thread busy = Occupy(engine);
  const auto pending = Ask(engine, {1}, clock_.Now() + absl::Milliseconds(30));  // 11 and 11, and an eighth
  EXPECT_EQ(engine.in_flight(), 2);
  predictor_->blocked = false;
  busy.join();
  pending->future.wait();
}

TEST_F(InferenceEngineTest, WhoGivesUpInTheSecondHalfOfHisTimeTeachesTheMargin) {
  InferenceEngine engine({.executors = 1}, clock_);
  const std::vector<uint8_t> pixels = Pixels({1});
  engine.Infer(version_, {.input = pixels}, [&](const Result&) { clock_.Advance(absl::Milliseconds(11)); });
  std::thread busy = Occupy(engine);
  const auto give_up_after = [&](absl::Duration time) {
    for (int i = 0; i < 20; ++i) {
      const auto pending = Ask(engine, {1}, clock_.Now() + absl::Milliseconds(100));
      clock_.Advance(time);
      engine.Cancel(pending->ticket);
      EXPECT_THAT(pending->future.get(), StatusIs(absl::StatusCode::kCancelled));
    }
  };
  const auto fits = [&] {
    const auto pending = Ask(engine, {1}, clock_.Now() + absl::Milliseconds(20));
    engine.Cancel(pending->ticket);
    return absl::IsCancelled(pending->future.get().status());
  };
  give_up_after(absl::Milliseconds(45));
  EXPECT_TRUE(fits()) << "11 ms and an eighth of 20";
  give_up_after(absl::Milliseconds(55));
  EXPECT_FALSE(fits()) << "three quarters of 20 are the most";
  predictor_->blocked = false;
  busy.join();
}

TEST_F(InferenceEngineTest, WhoIsRefusedInterruptsNobodyUntilAnExecutorIsFree) {
  InferenceEngine engine({.executors = 1, .requests = 1}, clock_);
  EXPECT_THAT(Ask(engine, {1})->future.get(), IsOk());
  EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
  std::thread busy = Occupy(engine);
  EXPECT_THAT(Ask(engine, {1})->future.get(), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(sched_getscheduler(0), SCHED_BATCH);
  predictor_->blocked = false;
  busy.join();
  EXPECT_THAT(Ask(engine, {1})->future.get(), IsOk());
  EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
}

TEST_F(InferenceEngineTest, EveryReleaseAndRefusalIsCountedUnderItsName) {
  VersionSeries& series = version_->series();
  for (size_t i = 0; i < Batcher::kReleases; ++i) series.ObserveBatch(1, static_cast<Batcher::Release>(i));
  for (size_t i = 0; i < Batcher::kReasons; ++i) series.CountRejected(static_cast<Batcher::Refusal::Reason>(i));
  for (const char* name : {"idle_executor", "freed_executor", "rows_limit", "bytes_limit", "deadline"}) {
    EXPECT_THAT(metrics_.Render(),
                HasSubstr(absl::StrCat("batches_total{model=\"mnist\",release=\"", name, "\",version=\"6\"} 1")));
  }
  for (const char* name : {"queue_requests", "queue_rows", "queue_bytes", "late"}) {
    EXPECT_THAT(metrics_.Render(),
                HasSubstr(absl::StrCat("rejected_total{model=\"mnist\",reason=\"", name, "\",version=\"6\"} 1")));
  }
}

TEST_F(InferenceEngineTest, ABatchIsExpectedToTakeAsLongAsItsAnswersToo) {
  InferenceEngine engine({.executors = 1}, clock_);
  const std::vector<uint8_t> pixels = Pixels({1});
  InferenceRequest request;
  request.input = pixels;
  request.rows = 1;
  engine.Infer(version_, request, [&](const Result&) { clock_.Advance(absl::Milliseconds(30)); });
  std::thread busy = Occupy(engine);
  const auto late = Ask(engine, {2}, clock_.Now() + absl::Milliseconds(40));
  EXPECT_EQ(engine.in_flight(), 1) << "30 ms for what runs, and 30 more";
  predictor_->blocked = false;
  busy.join();
  EXPECT_THAT(late->future.get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(InferenceEngineTest, WarmComputesEverySizeOnEveryExecutor) {
  InferenceEngine engine({.executors = 2, .batch_rows = 8}, clock_);
  engine.Warm(version_);
  EXPECT_EQ(predictor_->entered, 2 * 4 * 2);
  EXPECT_EQ(predictor_->last_rows, 8u);
  EXPECT_NE(predictor_->last_thread.load(), std::this_thread::get_id());
}

TEST_F(InferenceEngineTest, WhatWaitsWhenTheEngineEndsIsAnswered) {
  std::optional<InferenceEngine> engine(std::in_place, Batcher::Limits{.executors = 2}, clock_);
  std::thread busy = Occupy(*engine);
  std::thread busy_too([&] { Ask(*engine, {1})->future.get().IgnoreError(); });
  EXPECT_TRUE(Eventually([&] { return predictor_->entered == 2; }));
  const auto waiting = Ask(*engine, {1});
  predictor_->blocked = false;
  busy.join();
  busy_too.join();
  engine.reset();
  // Either an executor had just taken it, or it was told.
  const Result result = waiting->future.get();
  EXPECT_TRUE(result.ok() || absl::IsUnavailable(result.status())) << result.status();
}

// Callers, cancellations and deadlines at once: everybody gets one answer, and it is theirs.
TEST_F(InferenceEngineTest, ManyCallersNeverGetAnothersAnswer) {
  InferenceEngine engine({.executors = 2, .batch_rows = 8, .requests = 12}, RealClock());
  std::vector<std::thread> callers;
  std::atomic<int> answered = 0;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 400; ++i) {
        std::vector<uint8_t> first(1 + (i * 7 + caller) % 19);
        for (size_t row = 0; row < first.size(); ++row)
          first[row] = static_cast<uint8_t>((caller * 31 + i + row) % 250);
        const absl::Time deadline = RealClock().Now() + (i % 5 == 0 ? absl::Microseconds(200) : absl::Seconds(20));
        const auto pending = Ask(engine, first, deadline, i % 11 == 0);
        if (i % 3 == 0) engine.Cancel(pending->ticket);
        const Result result = pending->future.get();
        if (!result.ok()) continue;
        ++answered;
        ASSERT_EQ(First(*result), first);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(engine.in_flight(), 0);
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_expired_rows_executed_total{model=\"mnist\",version=\"6\"} 0"));
}

}  // namespace
}  // namespace millrace
