// What a NetworkSpec gives, and which are refused.
#include "common/model/network.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/files.h"
#include "common/hashing.h"
#include "common/model/replica.h"
#include "common/model/servable.h"
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
  for (const auto& spec : {NetworkOf("cnn", 3, 32, 32, 100), NetworkOf("cnn", 1, 5, 9, 2), NetworkOf("mlp", 2, 7, 3, 4)}) {
    const absl::StatusOr<std::unique_ptr<Replica>> replica = Replica::Create(spec);
    ASSERT_THAT(replica, IsOk()) << spec.ShortDebugString();
    (*replica)->InitializeParameters(1);
    const Samples samples = RandomSamples(spec, 3, 5);
    EXPECT_THAT((*replica)->ComputeGradient(samples.images, samples.labels, 0), IsOk()) << spec.ShortDebugString();
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

TEST_F(TorchscriptTest, RefusesRunningStatistics) {
  EXPECT_THAT(Replica::Create(SpecOf(RunningStatisticsScript(16, 3))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("changes a buffer")));
}

}  // namespace
}  // namespace millrace
