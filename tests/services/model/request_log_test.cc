#include "services/model/request_log.h"

#include <atomic>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/model/model_metrics.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/eventually.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SamplerTest, TakesItsPartEvenly) {
  for (const double fraction : {0.0, 0.01, 0.3, 1.0}) {
    Sampler sampler(fraction);
    for (int thousand = 0; thousand < 10; ++thousand) {
      int taken = 0;
      for (int i = 0; i < 1000; ++i) taken += sampler.Take() ? 1 : 0;
      EXPECT_NEAR(taken, 1000 * fraction, 3) << fraction;
    }
  }
}

TEST(FormatRequestRecordTest, IsALineOfJson) {
  RequestRecord record{.time = absl::FromUnixMillis(1'700'000'000'123),
                       .peer = "ipv4:10.0.0.7:53412",
                       .model = "mnist",
                       .version = 844,
                       .step = 844,
                       .digest = "59997835",
                       .rows = 2,
                       .batch_rows = 5,
                       .labelled = true,
                       .label = 3,
                       .confidence = 0.5,
                       .queue = absl::Microseconds(7),
                       .compute = absl::Microseconds(412)};
  EXPECT_EQ(FormatRequestRecord(record),
            R"({"time":"2023-11-14T22:13:20.123+00:00","peer":"ipv4:10.0.0.7:53412","model":"mnist","version":844,)"
            R"("step":844,"digest":"59997835","rows":2,"batch_rows":5,"label":3,"confidence":0.5,"queue_us":7,)"
            R"("compute_us":412,"status":"OK"})"
            "\n");
  record.labelled = false;
  record.peer = "\xff\"\n";
  record.status = absl::StatusCode::kUnavailable;
  const std::string line = FormatRequestRecord(record);
  const auto json = nlohmann::json::parse(line);
  EXPECT_TRUE(json["label"].is_null());
  EXPECT_EQ(json["status"], "UNAVAILABLE");
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

// The real one, but for a disk that is full, or slow, when the test says so.
class FailingDisk final : public FileSystem {
 public:
  class FailingWriter final : public Writer {
   public:
    FailingWriter(FailingDisk& disk, std::unique_ptr<Writer> writer) : disk_(disk), writer_(std::move(writer)) {}
    absl::Status Append(std::span<const std::byte> data) override {
      while (disk_.slow) std::this_thread::yield();
      if (!disk_.full) return writer_->Append(data);
      (void)writer_->Append(data.first(data.size() / 2));
      return absl::ResourceExhaustedError("the disk is full");
    }
    absl::Status Sync() override { return writer_->Sync(); }
    absl::Status Close() override { return writer_->Close(); }

   private:
    FailingDisk& disk_;
    const std::unique_ptr<Writer> writer_;
  };

  absl::StatusOr<std::unique_ptr<Writer>> Create(const fs::path& path) override {
    auto writer = real_.Create(path);
    if (!writer.ok()) return writer.status();
    return std::make_unique<FailingWriter>(*this, *std::move(writer));
  }
  absl::StatusOr<std::unique_ptr<Reader>> Open(const fs::path& path) override { return real_.Open(path); }
  absl::Status MakeDirectories(const fs::path& path) override { return real_.MakeDirectories(path); }
  absl::Status Rename(const fs::path& from, const fs::path& to) override { return real_.Rename(from, to); }
  absl::Status SyncDirectory(const fs::path& path) override { return real_.SyncDirectory(path); }
  absl::Status RemoveTree(const fs::path& path) override { return real_.RemoveTree(path); }
  absl::StatusOr<std::vector<std::string>> List(const fs::path& path) override { return real_.List(path); }
  absl::StatusOr<uint64_t> FileSize(const fs::path& path) override { return real_.FileSize(path); }
  absl::StatusOr<std::unique_ptr<Lock>> LockFile(const fs::path& path) override { return real_.LockFile(path); }

  std::atomic<bool> full = false;
  std::atomic<bool> slow = false;

 private:
  FileSystem& real_ = RealFileSystem();
};

class RequestLogTest : public ::testing::Test {
 protected:
  void Open(RequestLog::Options options = {}) {
    log_.reset();
    options.file = file_;
    log_ = *RequestLog::Create(options, metrics_, clock_, disk_);
  }
  static RequestRecord Record(uint64_t version, const std::string& peer = "unix:") {
    RequestRecord record;
    record.version = version;
    record.peer = peer;
    return record;
  }
  double Count(const std::string& result) {
    for (const auto& family : metrics_.registry()->Collect()) {
      if (family.name != "millrace_model_request_log_records_total") continue;
      for (const auto& metric : family.metric) {
        if (metric.label.front().value == result) return metric.counter.value;
      }
    }
    return -1;
  }
  static std::vector<std::string> Lines(const fs::path& path) {
    std::vector<std::string> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }

  const TemporaryDirectory directory_;
  const fs::path file_ = directory_ / "requests.jsonl";
  FakeClock clock_;
  Metrics metrics_{"test"};
  FailingDisk disk_;
  std::unique_ptr<RequestLog> log_;
};

TEST_F(RequestLogTest, WritesWhatItWasShown) {
  Open({.file = {}, .sample = 1});
  const std::shared_ptr<ModelMetrics> series = ModelMetrics::Create(metrics_);
  const LoadedVersion version(std::make_unique<FakePredictor>(FakeInfo("mnist", 7)), series->AddVersion("mnist", 7), 0);
  InferenceAnswer answer;
  answer.values = {0.1f, 0.1f, 0.1f, 0.7f, 0.7f, 0.1f, 0.1f, 0.1f};
  answer.rows = 2;
  answer.batch_rows = 3;
  answer.queue = absl::Microseconds(5);
  InferenceRequest request;
  request.rows = 2;
  request.peer = [] { return std::string("unix:"); };
  log_->Observe(version, request, absl::OkStatus(), answer);
  log_->Observe(version, {}, absl::DeadlineExceededError("late"), {});
  log_.reset();
  const std::vector<std::string> lines = Lines(file_);
  ASSERT_EQ(lines.size(), 2u);
  auto json = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(json["digest"], "digest-7");
  EXPECT_EQ(json["peer"], "unix:");
  EXPECT_EQ(json["label"], 3);
  EXPECT_NEAR(json["confidence"], 0.7, 1e-6);
  EXPECT_EQ(json["rows"], 2);
  EXPECT_EQ(json["queue_us"], 5);
  json = nlohmann::json::parse(lines[1]);
  EXPECT_EQ(json["status"], "DEADLINE_EXCEEDED");
  EXPECT_TRUE(json["label"].is_null());
  EXPECT_EQ(Count("written"), 2);
}

TEST_F(RequestLogTest, TheFilesTogetherStayWithinTheLimitAndHoldTheNewest) {
  Open({.file = {}, .bytes_max = RequestLog::kBytesMaxLeast});
  const std::string peer(200, 'p');
  constexpr int kRecords = 2000;  // of some 400 bytes: ten times the limit
  for (int i = 0; i < kRecords; ++i) {
    log_->Write(Record(static_cast<uint64_t>(i), peer));
    if (i % 500 == 499) {
      ASSERT_TRUE(Eventually([&] { return Count("written") == i + 1; }));
    }
  }
  log_.reset();
  EXPECT_LE(fs::file_size(file_) + fs::file_size(file_.string() + ".1"), RequestLog::kBytesMaxLeast);
  std::vector<std::string> lines = Lines(file_.string() + ".1");
  for (const std::string& line : Lines(file_)) lines.push_back(line);
  EXPECT_GT(lines.size(), 80u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(nlohmann::json::parse(lines[i])["version"], kRecords - lines.size() + i);
  }
}

TEST_F(RequestLogTest, WhatAnEarlierProcessLeftIsKeptOnce) {
  std::ofstream(file_) << "earlier\n";
  Open();
  log_.reset();
  EXPECT_THAT(Lines(file_.string() + ".1"), ElementsAre("earlier"));
  Open();  // what came between is empty
  EXPECT_THAT(Lines(file_.string() + ".1"), ElementsAre("earlier"));
}

TEST_F(RequestLogTest, AFullDiskLosesRecordsAndIsTriedAgainLater) {
  Open();
  disk_.full = true;
  log_->Write(Record(1));
  ASSERT_TRUE(Eventually([&] { return Count("failed") == 1; }));
  disk_.full = false;
  log_->Write(Record(2));
  ASSERT_TRUE(Eventually([&] { return Count("failed") == 2; })) << "not yet";
  clock_.Advance(RequestLog::kRetryAfter);
  log_->Write(Record(3));
  ASSERT_TRUE(Eventually([&] { return Count("written") == 1; }));
  log_.reset();
  ASSERT_EQ(Lines(file_).size(), 1u) << "without the half of a line";
  EXPECT_EQ(nlohmann::json::parse(Lines(file_)[0])["version"], 3);
}

TEST_F(RequestLogTest, ASlowDiskLosesRecordsAndNobodyWaits) {
  Open();
  disk_.slow = true;
  for (size_t i = 0; i < 3 * RequestLog::kQueueMax; ++i) log_->Write(Record(1));
  // One batch in the writer's hands, of at most a queue's length, and one in the queue.
  EXPECT_GE(Count("dropped"), static_cast<double>(RequestLog::kQueueMax));
  disk_.slow = false;
  const double dropped = Count("dropped");
  log_.reset();
  EXPECT_EQ(Count("written") + dropped, 3 * RequestLog::kQueueMax);
}

TEST_F(RequestLogTest, BadOptionsAreNamed) {
  const auto create = [&](const RequestLog::Options& options) {
    return RequestLog::Create(options, metrics_, clock_).status();
  };
  EXPECT_THAT(create({.file = file_, .sample = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--request-log-sample")));
  EXPECT_THAT(create({.file = file_, .bytes_max = 100}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--request-log-max-bytes")));
  EXPECT_THAT(create({.file = directory_ / "nowhere/log"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("--request-log: ")));
}

}  // namespace
}  // namespace millrace
