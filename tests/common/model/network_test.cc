// What a NetworkSpec gives, and which are refused.
#include "common/model/network.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/files.h"
#include "common/hashing.h"
#include "common/model/replica.h"
#include "common/model/servable.h"
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

TEST(NetworkTest, DefaultNetworkIsTheKerasModel) {
  const absl::StatusOr<ParameterTable> table = NetworkParameters(NetworkOf("cnn"));
  ASSERT_THAT(table, IsOk());
  EXPECT_EQ(table->size(), 693962u);
  ASSERT_EQ(table->parameters().size(), 6u);
  EXPECT_EQ(table->parameters()[2].shape, (std::vector<int64_t>{128, 32 * 13 * 13}));
}

TEST(NetworkTest, MlpIsLargerThanGrpcsDefaultMessageLimit) {
  const absl::StatusOr<ParameterTable> table = NetworkParameters(NetworkOf("mlp"));
  ASSERT_THAT(table, IsOk());
  EXPECT_EQ(table->size(), 1863690u);
  EXPECT_GT(table->size() * sizeof(float), 4u << 20);
}

TEST(NetworkTest, OtherImageShapes) {
  for (const auto& spec :
       {NetworkOf("cnn", 3, 32, 32, 100), NetworkOf("cnn", 1, 5, 9, 2), NetworkOf("mlp", 2, 7, 3, 4),
        NetworkOf("lenet5", 3, 32, 32, 100), NetworkOf("lenet5", 1, 12, 13, 2), NetworkOf("cnn_deep", 3, 32, 32, 100),
        NetworkOf("cnn_deep", 1, 16, 19, 2), NetworkOf("rnn", 3, 32, 32, 100), NetworkOf("rnn", 1, 3, 5, 2),
        NetworkOf("autoencoder", 3, 32, 32, 100), NetworkOf("autoencoder", 1, 3, 5, 2)}) {
    const absl::StatusOr<std::unique_ptr<Replica>> replica = Replica::Create(spec);
    ASSERT_THAT(replica, IsOk()) << spec.ShortDebugString();
    (*replica)->InitializeParameters(1);
    const Samples samples = RandomSamples(spec, 3, 5);
    // One sample too: a slot may have no more.
    for (const size_t count : {3, 1}) {
      const size_t bytes = samples.images.size() / 3 * count;
      EXPECT_THAT((*replica)->ComputeGradient(std::span(samples.images).first(bytes),
                                              std::span(samples.labels).first(count), 0),
                  IsOk())
          << spec.ShortDebugString();
      for (std::span<const float> piece : (*replica)->gradient()) {
        for (float value : piece) ASSERT_TRUE(std::isfinite(value)) << spec.ShortDebugString();
      }
    }
    EXPECT_THAT((*replica)->Evaluate(samples.images, samples.labels), IsOk()) << spec.ShortDebugString();
  }
}

TEST(NetworkTest, SizesOfTheBuiltInNetworks) {
  const auto sizes = [](const std::string& name) {
    const absl::StatusOr<ParameterTable> table = NetworkParameters(NetworkOf(name));
    EXPECT_THAT(table, IsOk());
    return std::pair(table->trainable_size(), table->statistics_size());
  };
  EXPECT_EQ(sizes("lenet5"), std::pair(uint64_t{61706}, uint64_t{0}));  // LeCun's, but for full connections in conv2
  EXPECT_EQ(sizes("rnn"), std::pair(uint64_t{4 * 128 * (28 + 128 + 2) + 129 * 10}, uint64_t{0}));
  EXPECT_EQ(sizes("autoencoder"), std::pair(uint64_t{2 * (784 * 512 + 512 * 32) + 2 * 512 + 32 + 784}, uint64_t{0}));
  // A mean and a variance for each of the filters.
  const uint64_t norms = 2 * (32 + 64 + 64 + 128);
  const uint64_t convolutions = 25 * 32 + 9 * (32 * 64 + 64 * 64 + 64 * 128);
  EXPECT_EQ(sizes("cnn_deep"), std::pair(convolutions + norms + (128 * 25 + 1) * 10, norms));
}

TEST(NetworkTest, EveryNameIsANetwork) {
  for (const std::string_view name : kBuiltInNetworks) {
    EXPECT_THAT(NetworkParameters(NetworkOf(std::string(name))), IsOk()) << name;
    EXPECT_THAT(std::string(kBuiltInNetworkNames), HasSubstr(std::string(name)));
  }
}

TEST(NetworkTest, StatisticsStartAsPyTorchs) {
  const v1::NetworkSpec spec = NetworkOf("cnn_deep");
  const ParameterTable table = *NetworkParameters(spec);
  const std::vector<float> initial = *InitialParameters(spec, 1);
  for (const ParameterInfo& info : table.parameters()) {
    if (info.offset < table.trainable_size()) continue;
    const float expected = info.name.find("variance") == std::string::npos ? 0 : 1;
    for (uint64_t k = 0; k < info.size; ++k) ASSERT_EQ(initial[info.offset + k], expected) << info.name;
  }
}

TEST(NetworkTest, InitialParametersAreGlorotUniformAndFixed) {
  const v1::NetworkSpec spec = NetworkOf("cnn");
  const absl::StatusOr<std::vector<float>> first = InitialParameters(spec, 1);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(*first, *InitialParameters(spec, 1));
  EXPECT_NE(*first, *InitialParameters(spec, 2));

  const ParameterTable table = *NetworkParameters(spec);
  const double fans[] = {9 + 9 * 32, 0, 5408 + 128, 0, 128 + 10, 0};
  for (size_t i = 0; i < table.parameters().size(); ++i) {
    const ParameterInfo& info = table.parameters()[i];
    const auto begin = first->begin() + info.offset;
    const auto [low, high] = std::minmax_element(begin, begin + info.size);
    if (fans[i] == 0) {
      EXPECT_EQ(*low, 0);
      EXPECT_EQ(*high, 0);
      continue;
    }
    const double limit = std::sqrt(6.0 / fans[i]);
    EXPECT_GE(*low, -limit) << info.name;
    EXPECT_LE(*high, limit) << info.name;
    EXPECT_LT(*low, -0.9 * limit) << info.name;
    EXPECT_GT(*high, 0.9 * limit) << info.name;
  }
  // Ours to the bit, whatever LibTorch does: a change of it changes every result.
  EXPECT_EQ(WeightsSha256(*first), "dded8c0d5ff3ee653d16208c4651a65d8adb883e030fbf5ce9f211dc4125b67a");
}

TEST(NetworkTest, RefusesWhatCannotBeBuilt) {
  const auto refused = [](const v1::NetworkSpec& spec, const std::string& why) {
    EXPECT_THAT(NetworkParameters(spec), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused(NetworkOf("resnet"), "unknown network \"resnet\"");
  refused(NetworkOf("cnn", 0), "channels");
  refused(NetworkOf("cnn", 1, 3, 28), "at least 4x4");
  refused(NetworkOf("cnn", 1, 28, 4096), "1024");
  refused(NetworkOf("lenet5", 1, 28, 11), "at least 12x12");
  refused(NetworkOf("cnn_deep", 1, 15, 28), "at least 16x16");
  v1::NetworkSpec loss = NetworkOf("cnn");
  loss.set_loss(v1::LOSS_MSE);
  refused(loss, "cnn is made for the loss cross_entropy, not for mse");
  loss = NetworkOf("autoencoder");
  loss.set_loss(v1::LOSS_CROSS_ENTROPY);
  refused(loss, "autoencoder is made for the loss mse, not for cross_entropy");
  refused(NetworkOf("cnn", 1, 28, 28, 1), "classes");
  v1::NetworkSpec flat = NetworkOf("cnn");
  flat.set_standard_deviation(0);
  refused(flat, "standard deviation");
}

class TorchscriptTest : public ::testing::Test {
 protected:
  v1::NetworkSpec SpecOf(const torch::jit::Module& module) {
    v1::NetworkSpec spec = NetworkOf("torchscript", 1, 4, 4, 3);
    spec.set_torchscript_path(directory_ / "net.pt");
    module.save(spec.torchscript_path());
    spec.set_torchscript_sha256(*Sha256File(spec.torchscript_path()));
    return spec;
  }

  TemporaryDirectory directory_;
};

TEST_F(TorchscriptTest, StoredParametersAreTheInitialOnes) {
  const v1::NetworkSpec spec = SpecOf(LinearScript(16, 3));
  const absl::StatusOr<std::vector<float>> initial = InitialParameters(spec, 99);
  ASSERT_THAT(initial, IsOk());
  ASSERT_EQ(initial->size(), 16u * 3 + 3);
  EXPECT_FLOAT_EQ((*initial)[1], 0.01f);  // LinearScript counts upwards
  auto replica = Replica::Create(spec);
  ASSERT_THAT(replica, IsOk());
  (*replica)->InitializeParameters(7);
  EXPECT_TRUE(std::equal(initial->begin(), initial->end(), (*replica)->parameters().begin()));
}

TEST_F(TorchscriptTest, TrainsThroughTheFlatVector) {
  const v1::NetworkSpec spec = SpecOf(LinearScript(16, 3));
  auto replica = Replica::Create(spec);
  ASSERT_THAT(replica, IsOk());
  (*replica)->InitializeParameters(0);
  const Samples samples = RandomSamples(spec, 8, 3);
  double first = 0, last = 0;
  for (int step = 0; step < 20; ++step) {
    const auto result = (*replica)->ComputeGradient(samples.images, samples.labels, step);
    ASSERT_THAT(result, IsOk());
    (step == 0 ? first : last) = result->loss_sum;
    float* parameter = (*replica)->parameters().data();
    for (std::span<const float> piece : (*replica)->gradient()) {
      for (float gradient : piece) *parameter++ -= 0.01f * gradient;
    }
  }
  EXPECT_LT(last, 0.8 * first);
}

TEST_F(TorchscriptTest, NoiseDependsOnItsSeedAlone) {
  const v1::NetworkSpec spec = SpecOf(DropoutScript(16, 3));
  auto replica = Replica::Create(spec);
  ASSERT_THAT(replica, IsOk());
  (*replica)->InitializeParameters(0);
  const Samples samples = RandomSamples(spec, 8, 3);
  const double a = (*replica)->ComputeGradient(samples.images, samples.labels, 1)->loss_sum;
  const double b = (*replica)->ComputeGradient(samples.images, samples.labels, 2)->loss_sum;
  EXPECT_NE(a, b);
  EXPECT_EQ((*replica)->ComputeGradient(samples.images, samples.labels, 1)->loss_sum, a);
  // Evaluation has none.
  EXPECT_EQ((*replica)->Evaluate(samples.images, samples.labels)->loss_sum,
            (*replica)->Evaluate(samples.images, samples.labels)->loss_sum);
}

TEST_F(TorchscriptTest, RefusesAnotherFileThanTheJobNames) {
  v1::NetworkSpec spec = SpecOf(LinearScript(16, 3));
  spec.set_torchscript_sha256(std::string(64, '0'));
  EXPECT_THAT(Replica::Create(spec), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("SHA-256")));
  spec.set_torchscript_path(directory_ / "absent.pt");
  EXPECT_THAT(Replica::Create(spec), StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent.pt")));
}

TEST_F(TorchscriptTest, RefusesWhatIsNoClassifier) {
  EXPECT_THAT(Replica::Create(SpecOf(LinearScript(16, 5))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("instead of float logits [2, 3]")));
  EXPECT_THAT(Replica::Create(SpecOf(LinearScript(17, 3))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("does not take float images [n, 1, 4, 4]")));
  v1::NetworkSpec garbage = SpecOf(LinearScript(16, 3));
  ASSERT_THAT(WriteFileAtomically(garbage.torchscript_path(), "not a zip"), IsOk());
  garbage.clear_torchscript_sha256();
  EXPECT_THAT(Replica::Create(garbage), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a TorchScript")));
}

TEST_F(TorchscriptTest, FindsWhatTrainingChangesAndLeavesTheRest) {
  const ParameterTable plain = *NetworkParameters(SpecOf(LinearScript(16, 3)));  // has a buffer that nobody changes
  EXPECT_EQ(plain.statistics_size(), 0u);
  const ParameterTable mean = *NetworkParameters(SpecOf(RunningMeanScript(16, 3)));
  EXPECT_EQ(mean.statistics_size(), 16u);
  const v1::NetworkSpec spec = SpecOf(BatchNormScript(1, 16, 3));
  const ParameterTable norm = *NetworkParameters(spec);
  EXPECT_EQ(norm.trainable_size(), 16u * 3 + 2);
  ASSERT_EQ(norm.parameters().size(), 5u) << "the counter is left out";
  EXPECT_EQ(norm.parameters()[3].name, "running_mean");
  EXPECT_EQ(norm.parameters()[4].name, "running_var");
  const std::vector<float> initial = *InitialParameters(spec, 1);
  EXPECT_EQ(initial[norm.parameters()[3].offset], 0);  // as stored: trying the module has left no trace
  EXPECT_EQ(initial[norm.parameters()[4].offset], 1);
}

TEST_F(TorchscriptTest, FindsStatisticsThatStartAtTheFirstBatchsOwn) {
  torch::jit::Module module = LinearScript(16, 3, "x.flatten(1) + self.mean.mul_(0.9)");  // 0 stays 0
  EXPECT_EQ(NetworkParameters(SpecOf(module))->statistics_size(), 16u);
}

TEST_F(TorchscriptTest, CountersMayCountButNotDecide) {
  EXPECT_THAT(Replica::Create(SpecOf(BatchNormScript(1, 16, 3, false, "0.1", "self.batches = self.batches + 1"))),
              IsOk());
  EXPECT_THAT(Replica::Create(SpecOf(BatchNormScript(1, 16, 3, false, "1.0 / float(self.batches.item())"))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("counted before in batches")));
}

TEST_F(TorchscriptTest, RefusesStatisticsThatCannotBeKept) {
  EXPECT_THAT(Replica::Create(SpecOf(ReplacedMeanScript(16, 3))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("assigns a new tensor")));
  torch::jit::Module doubles = LinearScript(16, 3, "x.flatten(1) + self.total.add_(1).float()");
  EXPECT_THAT(Replica::Create(SpecOf(doubles)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("changes total, which is Double")));
}

TEST_F(TorchscriptTest, KnowsWhoCannotDoWithOneSample) {
  EXPECT_EQ(DescribeNetwork(SpecOf(LinearScript(16, 3)))->slot_samples_min, 1u);
  EXPECT_EQ(DescribeNetwork(SpecOf(BatchNormScript(1, 16, 3)))->slot_samples_min, 1u);
  EXPECT_EQ(DescribeNetwork(SpecOf(BatchNormScript(1, 16, 3, true)))->slot_samples_min, 2u);
}

TEST_F(TorchscriptTest, TrainsAReconstruction) {
  v1::NetworkSpec spec = SpecOf(ScaleScript(1, 4, 4));
  EXPECT_THAT(Replica::Create(spec), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("float logits [2, 3]")));
  spec.set_loss(v1::LOSS_MSE);
  spec.set_mean(0.5);  // what the module sees; the target are pixels in [0, 1] whatever that is
  auto replica = Replica::Create(spec);
  ASSERT_THAT(replica, IsOk());
  (*replica)->InitializeParameters(0);
  const Samples samples = RandomSamples(spec, 2, 3);
  double expected = 0;
  for (uint8_t pixel : samples.images) {
    const double value = pixel / 255.0;
    expected += std::pow(0.5 * (value - 0.5) - value, 2) / 16;
  }
  const auto result = (*replica)->ComputeGradient(samples.images, samples.labels, 0);
  ASSERT_THAT(result, IsOk());
  EXPECT_NEAR(result->loss_sum, expected, 1e-5);
  EXPECT_EQ(result->correct, 0u);
  const double first = samples.images[0] / 255.0, second = samples.images[16] / 255.0;
  const auto slope = [](double value) { return 2 * (0.5 * (value - 0.5) - value) * (value - 0.5) / 16; };
  EXPECT_NEAR((*replica)->gradient()[0][0], slope(first) + slope(second), 1e-6);
  EXPECT_NEAR((*replica)->Evaluate(samples.images, samples.labels)->loss_sum, expected, 1e-5);
  // An image is no class, nor the other way round.
  v1::NetworkSpec classifier = SpecOf(LinearScript(16, 3));
  classifier.set_loss(v1::LOSS_MSE);
  EXPECT_THAT(Replica::Create(classifier),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("float images [2, 1, 4, 4]")));
}

}  // namespace
}  // namespace millrace
