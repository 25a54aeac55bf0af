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
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
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
  const std::unique_ptr<Replica> replica = NewReplica(NetworkOf("cnn"));
  const auto result = replica->ComputeGradient({}, {}, 0);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->samples, 0u);
  EXPECT_EQ(Flat(replica->gradient()), std::vector<float>(693962));
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
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  const Samples samples = RandomSamples(spec, 32, 7), others = RandomSamples(spec, 19, 8);
  const std::string first = GradientDigest(*replica, samples);
  for (int i = 0; i < 20; ++i) {
    GradientDigest(*replica, others);
    ASSERT_EQ(GradientDigest(*replica, samples), first) << "after " << i;
  }
}

// Run by the test below in a process of its own.
TEST(ReplicaTest, WritesTheDigestOfAFreshProcess) {
  const char* path = std::getenv(kDigestFile);
  if (path == nullptr) GTEST_SKIP() << "only as a child";
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  ASSERT_THAT(WriteFileAtomically(path, GradientDigest(*replica, RandomSamples(spec, 32, 7))), IsOk());
}

TEST(ReplicaTest, AFreshProcessGivesTheBitsOfAWarmOne) {
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const std::unique_ptr<Replica> replica = NewReplica(spec);
  const Samples samples = RandomSamples(spec, 32, 7);
  std::string warm;
  for (int i = 0; i < 20; ++i) warm = GradientDigest(*replica, samples);

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
  const absl::StatusOr<std::string> fresh = ReadFile(path, 100);
  ASSERT_THAT(fresh, IsOk());
  EXPECT_EQ(*fresh, warm);
}

}  // namespace
}  // namespace millrace
