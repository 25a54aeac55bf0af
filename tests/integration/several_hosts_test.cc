// The parts of a job on hosts of their own that trust nobody without a certificate, and a network that fails between
// some of them.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <regex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/integration/virtual_network.h"
#include "tests/testing/certificates.h"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using Flags = std::vector<std::string>;

constexpr absl::Duration kPartition = absl::Seconds(5);

enum Host { kData, kFirstShard, kSecondShard, kFirstWorker, kSecondWorker, kModel, kClient, kHosts };

class SeveralHostsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<VirtualNetwork>> network = VirtualNetwork::Create(kHosts);
    if (!network.ok()) {
      std::cerr << "NO NETWORK OF SEVERAL HOSTS CAN BE MADE HERE: " << network.status().message() << std::endl;
      GTEST_SKIP() << network.status().message();
    }
    network_ = *std::move(network);
    WriteIdxDataset(directory_ / "data");
    for (int host = 0; host < kHosts; ++host) {
      certificates_.push_back(authority_.Issue(
          {.name = absl::StrCat("host-", host), .alternative_names = "IP:" + VirtualNetwork::AddressOf(host)}));
    }
  }

  std::string QuietDigest() {
    ClusterProcess quiet(directory_ / "quiet", directory_ / "data",
                         {"--epochs", "10", "--batch-size", "64", "--seed", "3", "--workers", "1", "--no-serving"});
    return Finish(quiet)["weights_sha256"];
  }
  std::string WriteJob() {
    JobFlags flags;
    flags.epochs = 10;
    flags.batch_size = 64;
    flags.seed = 3;
    EXPECT_THAT(OutputDirectory::Open(out_, "", false)->WriteJob(*MakeJobSpec(flags, nullptr, 1600)), IsOk());
    return out_ + "/job.textproto";
  }

  Flags WithTls(Host host, Flags flags) {
    const Flags tls = TlsFlags(certificates_[host]);
    flags.insert(flags.end(), tls.begin(), tls.end());
    return flags;
  }
  Program Start(Host host, const std::string& program, Flags flags) {
    network_->Enter(host);
    flags.insert(flags.end(), {"--http-listen", VirtualNetwork::AddressOf(host) + ":0"});
    return Program(program, WithTls(host, std::move(flags)), directory_ / absl::StrCat("host-", int{host}, ".stderr"));
  }
  Program Serve(Host host, const std::string& program, Flags flags) {
    flags.insert(flags.end(), {"--listen", VirtualNetwork::AddressOf(host) + ":0"});
    return Start(host, program, std::move(flags));
  }

  // What `millrace ARGUMENTS` says on the client's host; empty if it fails.
  std::string Ask(Flags arguments) {
    network_->Enter(kClient);
    arguments.insert(arguments.begin(), (fs::path(MILLRACE_BIN_DIR) / "millrace").string());
    ChildProcess client(WithTls(kClient, std::move(arguments)));
    return client.Wait() == 0 ? client.rest_of_stdout() : "";
  }
  // The job's step, by its status.
  static int StepOf(const std::string& status) {
    std::smatch match;
    if (!std::regex_search(status, match, std::regex("step ([0-9,]+)/"))) return -1;
    return std::stoi(std::regex_replace(match[1].str(), std::regex(","), ""));
  }
  const TemporaryDirectory directory_;
  const std::string out_ = directory_ / "out";
  CertificateAuthority authority_{directory_ / "tls"};
  std::vector<TlsFiles> certificates_;
  std::unique_ptr<VirtualNetwork> network_;
};

TEST_F(SeveralHostsTest, WorkersCutOffFromOneShardGoOnWithTheSameBits) {
  const std::string expected = QuietDigest();

  Program data = Serve(kData, "millrace-data", {"--data-dir", directory_ / "data"});
  Program first = Serve(kFirstShard, "millrace-ps",
                        {"--shard", "0", "--num-shards", "2", "--job", WriteJob(), "--output", out_, "--data",
                         data.WaitForAddresses().grpc});
  const std::string coordinator = first.WaitForAddresses().grpc;
  Program second =
      Serve(kSecondShard, "millrace-ps", {"--shard", "1", "--num-shards", "2", "--coordinator", coordinator});
  Program model = Serve(kModel, "millrace-model",
                        {"--repository", directory_ / "models", "--source", coordinator, "--drain-seconds", "0"});
  Program worker_0 = Start(kFirstWorker, "millrace-worker", {"--coordinator", coordinator, "--name", "worker-0"});
  Program worker_1 = Start(kSecondWorker, "millrace-worker", {"--coordinator", coordinator, "--name", "worker-1"});

  const auto status = [&] { return Ask({"status", "--target", coordinator}); };
  ASSERT_TRUE(Eventually([&] { return StepOf(status()) >= 15; })) << status() << worker_0.Errors();
  for (const Host worker : {kFirstWorker, kSecondWorker}) network_->Cut(kSecondShard, worker);
  const absl::Time cut = absl::Now();
  std::string waiting;
  ASSERT_TRUE(Eventually([&] {
    const int step = StepOf(waiting);  // what was on its way when the network was cut may still end one
    waiting = status();
    return StepOf(waiting) == step && std::regex_search(waiting, std::regex("waiting for .*shard 1"));
  })) << waiting;
  std::printf("cut for %.1f s:\n%s", absl::ToDoubleSeconds(absl::Now() - cut), waiting.c_str());
  absl::SleepFor(cut + kPartition - absl::Now());  // the fault itself
  EXPECT_EQ(StepOf(status()), StepOf(waiting)) << "the network was not cut";
  for (const Host worker : {kFirstWorker, kSecondWorker}) network_->Mend(kSecondShard, worker);

  for (Program* worker : {&worker_0, &worker_1}) EXPECT_EQ(worker->Wait(), 0) << worker->Errors();
  EXPECT_TRUE(Eventually([&] { return NewestDigest(directory_ / "models") == expected; }));
  const std::string digit = directory_ / "digit.png";
  WriteDigitPng(digit, 7);
  const std::string target = model.WaitForAddresses().grpc;
  EXPECT_TRUE(Eventually([&] { return !Ask({"predict", "--target", target, digit}).empty(); })) << model.Errors();
}

}  // namespace
}  // namespace millrace
