#include "common/model/replica.h"

#include <spawn.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "common/files.h"
#include "common/hashing.h"
#include "common/model/device.h"
#include "common/model/runtime.h"
#include "common/networks.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/model/scripts.h"
#include "tests/common/model/test_networks.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr char kDigestFile[] = "MILLRACE_TEST_GRADIENT_DIGEST_FILE";

// Every test of this binary runs the networks as services do.
const bool configured = (ConfigureTorch(1), true);

std::vector<float> Flat(std::span<const std::span<const float>> pieces) {
  std::vector<float> flat;
  for (std::span<const float> piece : pieces) flat.insert(flat.end(), piece.begin(), piece.end());
  return flat;
}

std::string GradientDigest(Replica& replica, const Samples& samples) {
  EXPECT_THAT(replica.ComputeGradient(samples.images, samples.labels, 0), IsOk());
  Sha256 digest;
  for (std::span<const float> piece : replica.gradient()) digest.Update(std::as_bytes(piece));
  return digest.FinishHex();
}

std::unique_ptr<Replica> NewReplica(const v1::NetworkSpec& spec) {
  auto replica = Replica::Create(spec);
  EXPECT_THAT(replica, IsOk());
  (*replica)->InitializeParameters(1);
  return *std::move(replica);
}

// The same network composed from LibTorch's own layers, in the order in which Keras writes it.
struct Reference {
  Reference(const v1::NetworkSpec& spec, const Replica& replica) {
    for (const ParameterInfo& info : replica.table().parameters()) {
      parameters.push_back(
          torch::from_blob(const_cast<float*>(replica.parameters().data()) + info.offset, info.shape).clone());
      parameters.back().set_requires_grad(true);
    }
    mean = spec.mean();
    deviation = spec.standard_deviation();
  }

  at::Tensor Loss(const v1::NetworkSpec& spec, const Samples& samples, double label_smoothing) {
    const auto n = static_cast<int64_t>(samples.labels.size());
    auto x = torch::from_blob(const_cast<uint8_t*>(samples.images.data()),
                              {n, spec.channels(), spec.height(), spec.width()}, torch::kUInt8)
                 .to(torch::kFloat64)
                 .div(255)
                 .sub(mean)
                 .div(deviation);
    auto y = torch::from_blob(const_cast<uint8_t*>(samples.labels.data()), {n}, torch::kUInt8).to(torch::kInt64);
    const auto p = [&](size_t i) { return parameters[i].to(torch::kFloat64); };
    x = torch::max_pool2d(torch::relu(torch::conv2d(x, p(0), p(1))), 2);
    x = x.permute({0, 2, 3, 1}).flatten(1);
    x = torch::linear(torch::relu(torch::linear(x, p(2), p(3))), p(4), p(5));
    // Szegedy and others, 2015, section 7: the target is 1 - s for the label, and s / classes for every class besides.
    const at::Tensor log_p = torch::log_softmax(x, 1);
    return (1 - label_smoothing) * torch::nll_loss(log_p, y, {}, at::Reduction::Sum) -
           label_smoothing * log_p.sum() / static_cast<double>(spec.classes());
  }

  std::vector<at::Tensor> parameters;
  double mean = 0, deviation = 1;
};

TEST(ReplicaTest, GradientMatchesAnIndependentComposition) {
  const v1::NetworkSpec usual = NetworkOf("cnn"), unusual = NetworkOf("cnn", 3, 11, 8, 5);
  for (auto [spec, label_smoothing] : {std::pair(usual, 0.0), std::pair(unusual, 0.0), std::pair(unusual, 0.2)}) {
    spec.set_mean(0.25);
    spec.set_standard_deviation(0.5);
    const std::unique_ptr<Replica> replica = NewReplica(spec);
    replica->set_label_smoothing(label_smoothing);
    const Samples samples = RandomSamples(spec, 16, 7);
    const auto result = replica->ComputeGradient(samples.images, samples.labels, 0);
    ASSERT_THAT(result, IsOk());

    Reference reference(spec, *replica);
    const at::Tensor loss = reference.Loss(spec, samples, label_smoothing);
    loss.backward();
    EXPECT_EQ(result->samples, 16u);
    EXPECT_NEAR(result->loss_sum, loss.item<double>(), 1e-4);
    for (size_t i = 0; i < reference.parameters.size(); ++i) {
      const std::span<const float> piece = replica->gradient()[i];
      const at::Tensor ours = torch::from_blob(const_cast<float*>(piece.data()),
                                               reference.parameters[i].sizes());
      const at::Tensor theirs = reference.parameters[i].grad();
      const double scale = theirs.abs().max().item<double>();
      EXPECT_LE((ours - theirs).abs().max().item<double>(), 1e-4 * scale + 1e-6) << i;
    }
  }
}

TEST(ReplicaTest, GradientIsASumOverSamples) {
  const v1::NetworkSpec spec = NetworkOf("mlp", 1, 6, 6, 4);
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  const Samples samples = RandomSamples(spec, 10, 7);
  const std::span<const uint8_t> images = samples.images, labels = samples.labels;
  ASSERT_THAT(replica->ComputeGradient(images, labels, 0), IsOk());
  const std::vector<float> whole = Flat(replica->gradient());
  ASSERT_THAT(replica->ComputeGradient(images.first(4 * 36), labels.first(4), 0), IsOk());
  std::vector<float> parts = Flat(replica->gradient());
  ASSERT_THAT(replica->ComputeGradient(images.subspan(4 * 36), labels.subspan(4), 0), IsOk());
  const std::vector<float> rest = Flat(replica->gradient());
  for (size_t i = 0; i < parts.size(); ++i) ASSERT_NEAR(parts[i] + rest[i], whole[i], 1e-4);
}

TEST(ReplicaTest, GradientOfNothingIsZero) {
  for (const v1::NetworkSpec& spec : {NetworkOf("cnn"), NetworkOf("cnn_deep")}) {
    const std::unique_ptr<Replica> replica = NewReplica(spec);
    const Samples samples = RandomSamples(spec, 4, 1);
    ASSERT_THAT(replica->ComputeGradient(samples.images, samples.labels, 0), IsOk());  // of something, first
    const auto result = replica->ComputeGradient({}, {}, 0);
    ASSERT_THAT(result, IsOk());
    EXPECT_EQ(result->samples, 0u);
    EXPECT_EQ(Flat(replica->gradient()), std::vector<float>(replica->table().size()));
  }
}

// A user's BatchNorm2d, trained on its own by LibTorch.
class BatchNormTest : public ::testing::Test {
 protected:
  BatchNormTest() {
    spec_.set_torchscript_path(directory_ / "net.pt");
    BatchNormScript(2, 2 * 5 * 5, 3).save(spec_.torchscript_path());
    replica_ = NewReplica(spec_);
    mean_ = replica_->table().parameters()[3];
    variance_ = replica_->table().parameters()[4];
    // Not the initial ones, to which anything may be added without being noticed.
    for (float& value : Statistics()) value += 0.3f;
  }

  std::span<float> Statistics() { return replica_->parameters().subspan(replica_->table().trainable_size()); }
  at::Tensor Get(const ParameterInfo& info) {
    return torch::from_blob(replica_->parameters().data() + info.offset, info.shape).clone();
  }
  // What is pushed for the statistics.
  std::vector<float> Change() {
    const std::span<const float> piece = replica_->gradient().back();
    return {piece.begin(), piece.end()};
  }
  std::vector<float> ComputeChange(const Samples& samples) {
    EXPECT_THAT(replica_->ComputeGradient(samples.images, samples.labels, 0), IsOk());
    return Change();
  }
  // PyTorch's own running statistics after a batch.
  std::vector<float> Reference(const Samples& samples) {
    const auto n = static_cast<int64_t>(samples.labels.size());
    const at::Tensor x =
        torch::from_blob(const_cast<uint8_t*>(samples.images.data()), {n, 2, 5, 5}, torch::kUInt8).div(255.0);
    const at::Tensor mean = Get(mean_), variance = Get(variance_);
    torch::batch_norm(x, {}, {}, mean, variance, /*training=*/true, 0.1, 1e-5, /*cudnn_enabled=*/false);
    const at::Tensor both = torch::cat({mean, variance});
    return {both.data_ptr<float>(), both.data_ptr<float>() + both.numel()};
  }

  TemporaryDirectory directory_;
  v1::NetworkSpec spec_ = NetworkOf("torchscript", 2, 5, 5, 3);
  std::unique_ptr<Replica> replica_;
  ParameterInfo mean_, variance_;
};

TEST_F(BatchNormTest, OneSlotGivesPyTorchsRunningStatistics) {
  const Samples samples = RandomSamples(spec_, 8, 3);
  const std::vector<float> before(Statistics().begin(), Statistics().end());
  const std::vector<float> expected = Reference(samples);
  const std::vector<float> change = ComputeChange(samples);
  ASSERT_EQ(change.size(), 4u);
  for (size_t i = 0; i < change.size(); ++i) {
    EXPECT_NEAR(before[i] + change[i] / 8, expected[i], 1e-6) << i;
    EXPECT_GT(std::abs(change[i]), 1e-3) << i;
  }
}

TEST_F(BatchNormTest, SeveralSlotsGiveTheSampleWeightedMeanOfTheirs) {
  const Samples few = RandomSamples(spec_, 2, 3), many = RandomSamples(spec_, 6, 4);
  const std::vector<float> before(Statistics().begin(), Statistics().end());
  const std::vector<float> of_few = Reference(few), of_many = Reference(many);
  const std::vector<float> a = ComputeChange(few), b = ComputeChange(many);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_NEAR(before[i] + (a[i] + b[i]) / 8, (2 * of_few[i] + 6 * of_many[i]) / 8, 1e-6) << i;
  }
}

TEST_F(BatchNormTest, WhatAWorkerComputedBeforeChangesNoBit) {
  const std::vector<float> before(replica_->parameters().begin(), replica_->parameters().end());
  const Samples first = RandomSamples(spec_, 4, 3), second = RandomSamples(spec_, 4, 4);
  EXPECT_THAT(replica_->ComputeGradient(second.images, second.labels, 0), IsOk());
  const std::vector<float> alone = Flat(replica_->gradient());
  EXPECT_THAT(replica_->ComputeGradient(first.images, first.labels, 0), IsOk());
  EXPECT_THAT(replica_->ComputeGradient(second.images, second.labels, 0), IsOk());
  EXPECT_EQ(Flat(replica_->gradient()), alone);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), replica_->parameters().begin()));
}

TEST_F(BatchNormTest, StatisticsDecideInEvaluation) {
  const Samples samples = RandomSamples(spec_, 4, 3);
  const double before = replica_->Evaluate(samples.images, samples.labels)->loss_sum;
  const double training = replica_->ComputeGradient(samples.images, samples.labels, 0)->loss_sum;
  for (float& value : Statistics()) value *= 3;
  EXPECT_NE(replica_->Evaluate(samples.images, samples.labels)->loss_sum, before);
  EXPECT_EQ(replica_->ComputeGradient(samples.images, samples.labels, 0)->loss_sum, training);
}

// All but the transfers of a GPU.
TEST(ReplicaTest, AMemoryOfItsOwnGivesTheSameBits) {
  for (const v1::NetworkSpec& spec : {NetworkOf("cnn"), NetworkOf("cnn_deep"), NetworkOf("autoencoder")}) {
    const std::unique_ptr<Replica> replica = NewReplica(spec);
    auto apart = Replica::Create(spec, {.device = "cpu", .own_memory = true});
    ASSERT_THAT(apart, IsOk());
    for (uint64_t seed : {1, 2}) {  // the second time with other parameters
      replica->InitializeParameters(seed);
      (*apart)->InitializeParameters(seed);
      const Samples samples = RandomSamples(spec, 9, seed);
      EXPECT_EQ(GradientDigest(**apart, samples), GradientDigest(*replica, samples)) << spec.architecture();
      EXPECT_EQ((*apart)->Evaluate(samples.images, samples.labels)->loss_sum,
                replica->Evaluate(samples.images, samples.labels)->loss_sum);
      EXPECT_TRUE(
          std::equal(replica->parameters().begin(), replica->parameters().end(), (*apart)->parameters().begin()));
    }
    EXPECT_THAT((*apart)->ComputeGradient({}, {}, 0), IsOk());
    EXPECT_EQ(Flat((*apart)->gradient()), std::vector<float>(replica->table().size()));
  }
}

TEST(DeviceTest, NamesADeviceThatIsThere) {
  EXPECT_EQ(ResolveDevice("cpu").value_or("none"), "cpu");
  for (const char* wrong : {"", "gpu", "cuda:", "cuda:-1", "cuda1", "cuda:x"}) {
    EXPECT_THAT(ResolveDevice(wrong), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("none of auto"))) << wrong;
  }
  if (torch::cuda::is_available()) {
    EXPECT_EQ(ResolveDevice("auto").value_or("none"), "cuda:0");
    EXPECT_EQ(ResolveDevice("cuda").value_or("none"), "cuda:0");
  } else {
    EXPECT_EQ(ResolveDevice("auto").value_or("none"), "cpu");
    EXPECT_THAT(ResolveDevice("cuda"),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("device cuda cannot be used: no GPU")));
  }
  EXPECT_THAT(ResolveDevice("cuda:4096"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("cuda:4096")));
}

TEST(ReplicaTest, SeesWhatIsWrittenToItsParameters) {
  const v1::NetworkSpec spec = NetworkOf("cnn", 1, 8, 8, 3);
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(replica->parameters().data()) % 64, 0u);
  const Samples samples = RandomSamples(spec, 5, 1);
  const double before = replica->Evaluate(samples.images, samples.labels)->loss_sum;
  for (float& value : replica->parameters()) value = 0;
  const auto after = replica->Evaluate(samples.images, samples.labels);
  EXPECT_NE(after->loss_sum, before);
  EXPECT_NEAR(after->loss_sum, 5 * std::log(3.0), 1e-5);  // all classes equal
}

TEST(ReplicaTest, EvaluationAndTrainingAgree) {
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  const Samples samples = RandomSamples(spec, 300, 1);  // more than one piece of an evaluation
  const auto trained = replica->ComputeGradient(samples.images, samples.labels, 0);
  const auto evaluated = replica->Evaluate(samples.images, samples.labels);
  EXPECT_NEAR(trained->loss_sum, evaluated->loss_sum, 1e-2);
  EXPECT_EQ(trained->correct, evaluated->correct);
  replica->set_label_smoothing(0.2);
  EXPECT_EQ(replica->Evaluate(samples.images, samples.labels)->loss_sum, evaluated->loss_sum)
      << "what a version is judged by does not depend on how it was trained";
}

TEST(ReplicaTest, RefusesBatchesThatDoNotFit) {
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  Samples samples = RandomSamples(spec, 2, 1);
  samples.labels[1] = 10;
  EXPECT_THAT(replica->ComputeGradient(samples.images, samples.labels, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("label 10 of sample 1")));
  samples.labels.pop_back();
  EXPECT_THAT(replica->ComputeGradient(samples.images, samples.labels, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1568 bytes")));
}

TEST(ReplicaTest, WarmGradientsHaveTheBitsOfTheFirst) {
  for (const std::string_view name : kBuiltInNetworks) {
    const v1::NetworkSpec spec = NetworkOf(std::string(name));
    const std::unique_ptr<Replica> replica = NewReplica(spec);
    const Samples samples = RandomSamples(spec, 32, 7), others = RandomSamples(spec, 19, 8);
    const std::string first = GradientDigest(*replica, samples);
    for (int i = 0; i < 20; ++i) {
      GradientDigest(*replica, others);
      if (i % 5 == 0) {
        EXPECT_THAT(replica->Evaluate(others.images, others.labels), IsOk());
      }
      ASSERT_EQ(GradientDigest(*replica, samples), first) << name << " after " << i;
    }
  }
}

// Of every network's gradient, at the last of `times`.
std::string DigestOfAll(int times) {
  std::string digests;
  for (const std::string_view name : kBuiltInNetworks) {
    const v1::NetworkSpec spec = NetworkOf(std::string(name));
    const std::unique_ptr<Replica> replica = NewReplica(spec);
    const Samples samples = RandomSamples(spec, 32, 7);
    std::string digest;
    for (int i = 0; i < times; ++i) digest = GradientDigest(*replica, samples);
    digests += std::string(name) + " " + digest + "\n";
  }
  return digests;
}

// Run by the test below in a process of its own.
TEST(ReplicaTest, WritesTheDigestOfAFreshProcess) {
  const char* path = std::getenv(kDigestFile);
  if (path == nullptr) GTEST_SKIP() << "only as a child";
  ASSERT_THAT(WriteFileAtomically(path, DigestOfAll(/*times=*/1)), IsOk());
}

TEST(ReplicaTest, AFreshProcessGivesTheBitsOfAWarmOne) {
  const std::string warm = DigestOfAll(/*times=*/20);

  const TemporaryDirectory directory;
  const std::string path = directory / "digest";
  const std::string variable = std::string(kDigestFile) + "=" + path;
  std::string name = "fresh", filter = "--gtest_filter=ReplicaTest.WritesTheDigestOfAFreshProcess";
  char* const arguments[] = {name.data(), filter.data(), nullptr};
  std::vector<char*> environment{const_cast<char*>(variable.c_str())};
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.push_back(nullptr);
  pid_t child = 0;
  ASSERT_EQ(posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments, environment.data()), 0);
  int exit_status = 0;
  ASSERT_EQ(waitpid(child, &exit_status, 0), child);
  ASSERT_EQ(exit_status, 0);
  const absl::StatusOr<std::string> fresh = ReadFile(path, 1000);
  ASSERT_THAT(fresh, IsOk());
  EXPECT_EQ(*fresh, warm);
}

}  // namespace
}  // namespace millrace
