#include "services/cli/train_options.h"

#include <filesystem>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMnistTrainSamples = 60'000;

TrainOptions Parse(std::vector<std::string> arguments) {
  TrainOptions options;
  CLI::App app;
  AddTrainFlags(app, options);
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  return options;
}

TEST(MakeJobSpecTest, DefaultsAreTheDefaultJob) {
  const absl::StatusOr<v1::JobSpec> spec = MakeJobSpec(Parse({}).job, nullptr, kMnistTrainSamples);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->model_name(), "mnist");
  EXPECT_EQ(spec->architecture(), "cnn");
  EXPECT_EQ(spec->batch_size(), 128u);
  EXPECT_EQ(spec->slots(), 4u);
  EXPECT_EQ(spec->epochs(), 10u);
  EXPECT_EQ(spec->validation_count(), 6000u);
  EXPECT_EQ(spec->optimizer().kind(), v1::OPTIMIZER_KIND_ADAM);
  EXPECT_EQ(spec->optimizer().learning_rate(), 1e-3);
  EXPECT_EQ(spec->normalization(), v1::NORMALIZATION_UNIT);
}

TEST(MakeJobSpecTest, ValidationScalesWithATinyDataset) {
  EXPECT_EQ(MakeJobSpec({}, nullptr, 300)->validation_count(), 30u);
  EXPECT_EQ(MakeJobSpec({}, nullptr, 5)->validation_count(), 0u);
  JobFlags flags;
  flags.validation_count = 100;
  EXPECT_EQ(MakeJobSpec(flags, nullptr, 300)->validation_count(), 100u);
  EXPECT_THAT(MakeJobSpec(flags, nullptr, 100),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--validation-count: 100 leaves nothing")));
}

TEST(MakeJobSpecTest, EveryFlagReachesTheJob) {
  const TrainOptions options = Parse({"--model",
                                      "mlp",
                                      "--model-name",
                                      "digits",
                                      "--epochs",
                                      "3",
                                      "--batch-size",
                                      "64",
                                      "--slots",
                                      "8",
                                      "--optimizer",
                                      "sgd",
                                      "--learning-rate",
                                      "0.5",
                                      "--momentum",
                                      "0.9",
                                      "--weight-decay",
                                      "0.1",
                                      "--seed",
                                      "7",
                                      "--validation-count",
                                      "10",
                                      "--checkpoint-steps",
                                      "5",
                                      "--evaluation-batch-size",
                                      "100",
                                      "--normalize",
                                      "standard",
                                      "--augment",
                                      "shift=2,rotate=10"});
  const absl::StatusOr<v1::JobSpec> spec = MakeJobSpec(options.job, nullptr, kMnistTrainSamples);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->architecture(), "mlp");
  EXPECT_EQ(spec->model_name(), "digits");
  EXPECT_EQ(spec->epochs(), 3u);
  EXPECT_EQ(spec->batch_size(), 64u);
  EXPECT_EQ(spec->slots(), 8u);
  EXPECT_EQ(spec->optimizer().kind(), v1::OPTIMIZER_KIND_SGD);
  EXPECT_EQ(spec->optimizer().learning_rate(), 0.5);
  EXPECT_EQ(spec->optimizer().momentum(), 0.9);
  EXPECT_EQ(spec->optimizer().weight_decay(), 0.1);
  EXPECT_EQ(spec->seed(), 7u);
  EXPECT_EQ(spec->validation_count(), 10u);
  EXPECT_EQ(spec->checkpoint_steps(), 5u);
  EXPECT_EQ(spec->evaluation_batch_size(), 100u);
  EXPECT_EQ(spec->normalization(), v1::NORMALIZATION_STANDARD);
  EXPECT_EQ(spec->augmentation().shift(), 2);
  EXPECT_EQ(spec->augmentation().rotate(), 10);
}

TEST(MakeJobSpecTest, AugmentationIsKeptUntilItIsSwitchedOff) {
  JobFlags flags;
  EXPECT_FALSE(MakeJobSpec(flags, nullptr, 100)->has_augmentation());
  flags.augment = "elastic=3";
  const v1::JobSpec spec = *MakeJobSpec(flags, nullptr, 100);
  EXPECT_EQ(MakeJobSpec({}, &spec, 100)->augmentation().elastic(), 3);
  flags.augment = "none";
  EXPECT_FALSE(MakeJobSpec(flags, &spec, 100)->has_augmentation());
  flags.augment = "elastic=33";
  EXPECT_THAT(MakeJobSpec(flags, nullptr, 100),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--augment: augmentation elastic 33")));
}

TEST(MakeJobSpecTest, ResumingKeepsWhatNoFlagNames) {
  const v1::JobSpec previous = *MakeJobSpec(
      Parse({"--optimizer", "sgd", "--momentum", "0.5", "--epochs", "3", "--seed", "9", "--model", "nets/mine.pt"}).job,
      nullptr, kMnistTrainSamples);
  JobFlags flags;
  flags.epochs = 5;
  flags.momentum = 0.9;
  const absl::StatusOr<v1::JobSpec> spec = MakeJobSpec(flags, &previous, kMnistTrainSamples);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->epochs(), 5u);
  EXPECT_EQ(spec->seed(), 9u);
  EXPECT_EQ(spec->architecture(), "torchscript");
  EXPECT_EQ(spec->torchscript_path(), std::filesystem::absolute("nets/mine.pt").string());
  EXPECT_EQ(spec->optimizer().kind(), v1::OPTIMIZER_KIND_SGD);
  EXPECT_EQ(spec->optimizer().momentum(), 0.9);
}

TEST(MakeJobSpecTest, TheLossIsTheNetworksOwnUnlessAFileIsToldOtherwise) {
  EXPECT_EQ(MakeJobSpec(Parse({"--model", "cnn_deep"}).job, nullptr, 60000)->loss(), v1::LOSS_UNSPECIFIED);
  EXPECT_EQ(MakeJobSpec(Parse({"--model", "autoencoder", "--loss", "mse"}).job, nullptr, 60000)->loss(), v1::LOSS_MSE);
  const auto file = MakeJobSpec(Parse({"--model", "net.pt", "--loss", "mse"}).job, nullptr, 60000);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(file->loss(), v1::LOSS_MSE);
  EXPECT_EQ(MakeJobSpec({}, &*file, 60000)->loss(), v1::LOSS_MSE);
  EXPECT_EQ(MakeJobSpec(Parse({"--model", "rnn"}).job, &*file, 60000)->loss(), v1::LOSS_UNSPECIFIED);
  EXPECT_THAT(MakeJobSpec(Parse({"--loss", "mse"}).job, nullptr, 60000),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--loss: the network cnn is made for cross_ent")));
}

TEST(MakeJobSpecTest, AnotherOptimizerBringsItsOwnDefaults) {
  JobFlags flags;
  flags.optimizer = "adamw";
  EXPECT_EQ(MakeJobSpec(flags, nullptr, 100)->optimizer().weight_decay(), 0.01);
  flags.optimizer = "sgd";
  EXPECT_EQ(MakeJobSpec(flags, nullptr, 100)->optimizer().learning_rate(), 0.01);
  EXPECT_EQ(MakeJobSpec(flags, nullptr, 100)->optimizer().beta1(), 0);
}

TEST(MakeJobSpecTest, RefusesWhatMakesNoSense) {
  JobFlags momentum;
  momentum.momentum = 0.9;
  EXPECT_THAT(MakeJobSpec(momentum, nullptr, 100),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--momentum is only for")));
  JobFlags model;
  model.model = "resnet";
  EXPECT_THAT(MakeJobSpec(model, nullptr, 100),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'resnet' is neither a built-in network")));
}

TEST(TrainFlagsTest, BadValuesDoNotParse) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{{"--epochs", "0"},
                                                                                         {"--batch-size", "-1"},
                                                                                         {"--slots", "1025"},
                                                                                         {"--learning-rate", "0"},
                                                                                         {"--optimizer", "lbfgs"},
                                                                                         {"--momentum", "1"},
                                                                                         {"--workers", "0"},
                                                                                         {"--normalize", "none"},
                                                                                         {"--seed", "x"},
                                                                                         {"--bogus"}}) {
    EXPECT_THROW(Parse(arguments), CLI::ParseError) << arguments[0];
  }
}

TEST(TrainFlagsTest, TheLastOfRepeatedFlagsCounts) {
  EXPECT_EQ(Parse({"--epochs", "10", "--epochs", "2"}).job.epochs, 2u);
}

TEST(ValidateTrainOptionsTest, KnowsTheDevices) {
  for (const char* device : {"auto", "cpu", "cuda", "cuda:3"}) {
    EXPECT_THAT(ValidateTrainOptions(Parse({"--device", device})), IsOk()) << device;
  }
  for (const char* device : {"gpu", "cuda:", "cuda:-1", "cuda3"}) {
    EXPECT_THAT(ValidateTrainOptions(Parse({"--device", device})),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--device")))
        << device;
  }
}

TEST(ValidateTrainOptionsTest, NamesFlagsThatDoNotGoTogether) {
  EXPECT_THAT(ValidateTrainOptions(Parse({})), IsOk());
  EXPECT_THAT(ValidateTrainOptions(Parse({"--serve", "--no-serving"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--no-serving")));
  EXPECT_THAT(ValidateTrainOptions(Parse({"--serve", "--serve-listen", "8500"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("8500")));
  EXPECT_THAT(ValidateTrainOptions(Parse({"--resume"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--out")));
  EXPECT_THAT(ValidateTrainOptions(Parse({"--resume", "--out", "x", "--momentum", "0.9"})), IsOk());
  EXPECT_THAT(ValidateTrainOptions(Parse({"--momentum", "0.9"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--momentum")));
  EXPECT_THAT(ValidateTrainOptions(Parse({"--model-name", "a/b"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--model-name \"a/b\"")));
}

}  // namespace
}  // namespace millrace
