#include "common/model/servable.h"

#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#include "common/files.h"
#include "common/hashing.h"
#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/model/scripts.h"
#include "tests/common/model/test_networks.h"
#include "tests/testing/signing_keys.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;

class ServableTest : public ::testing::Test {
 protected:
  ServableTest() {
    ConfigureTorch(1);
    SetNetwork(NetworkOf("cnn"), 1);
  }

  void SetNetwork(const v1::NetworkSpec& spec, uint64_t seed) {
    weights_ = *InitialParameters(spec, seed);
    options_ = {.repository = directory_ / "models",
                .model_name = "mnist",
                .version = 430,
                .epoch = 1,
                .network = spec,
                .parameters = weights_,
                .validation = std::nullopt,
                .test = std::nullopt,
                .seed = seed,
                .dataset_fingerprint = "f"};
  }

  fs::path version() const { return fs::path(options_.repository) / "mnist" / "430"; }

  void Export() { ASSERT_THAT(ExportServable(options_), IsOk()); }

  void ExpectRefused(RefusalReason reason, const std::string& why) {
    const auto model = ServableModel::Load(version());
    EXPECT_THAT(model, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why)));
    EXPECT_EQ(RefusalReasonOf(model.status()), reason);
    EXPECT_THAT(std::string(model.status().message()), ::testing::StartsWith(std::string(RefusalReasonName(reason))));
  }

  void EditManifest(const std::function<void(nlohmann::json&)>& edit) {
    auto manifest = nlohmann::json::parse(*ReadFile(version() / "manifest.json", 1 << 20));
    edit(manifest);
    ASSERT_THAT(WriteFileAtomically(version() / "manifest.json", manifest.dump()), IsOk());
  }

  // Puts another module in place of model.pt, with the manifest's digest made to match.
  void ReplaceModule(const torch::jit::Module& module) {
    module.save(version() / "model.pt");
    EditManifest([&](nlohmann::json& manifest) {
      manifest["files"][0]["bytes"] = fs::file_size(version() / "model.pt");
      manifest["files"][0]["sha256"] = *Sha256File(version() / "model.pt");
    });
  }

  TemporaryDirectory directory_;
  std::vector<float> weights_;
  ExportOptions options_;
};

TEST_F(ServableTest, ServesWhatWasTrained) {
  for (v1::NetworkSpec spec : {NetworkOf("cnn"), NetworkOf("mlp", 3, 9, 7, 4)}) {
    spec.set_mean(0.1);
    spec.set_standard_deviation(0.3);
    fs::remove_all(directory_ / "models");
    SetNetwork(spec, 3);
    Export();
    const auto model = ServableModel::Load(version());
    ASSERT_THAT(model, IsOk());

    auto replica = Replica::Create(spec);
    (*replica)->InitializeParameters(3);
    const Samples samples = RandomSamples(spec, 9, 4);
    const auto evaluated = (*replica)->Evaluate(samples.images, samples.labels);
    const auto probabilities = (*model)->Predict(samples.images, 9);
    ASSERT_THAT(probabilities, IsOk());
    ASSERT_EQ(probabilities->size(), 9 * spec.classes());
    double loss = 0;
    for (size_t i = 0; i < 9; ++i) loss -= std::log((*probabilities)[i * spec.classes() + samples.labels[i]]);
    EXPECT_NEAR(loss, evaluated->loss_sum, 1e-3);
  }
}

TEST_F(ServableTest, WithTrustedKeysOnlyWhatTheySignedIsLoaded) {
  const SigningKeyFiles ours = WriteSigningKey(directory_ / "ours");
  const SigningKeyFiles others = WriteSigningKey(directory_ / "others");
  const ServableModel::LoadOptions trusting = {
      .trusted_keys = std::make_shared<const TrustedKeys>(*TrustedKeys::Read(ours.public_key))};
  const auto expect_untrusted = [&](const std::string& why) {
    const auto model = ServableModel::Load(version(), trusting);
    EXPECT_THAT(model, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why)));
    EXPECT_EQ(RefusalReasonOf(model.status()), RefusalReason::kUntrusted);
  };
  Export();
  expect_untrusted("there is no manifest.sig");
  EXPECT_THAT(ServableModel::Load(version()), IsOk()) << "without trusted keys none is needed";

  fs::remove_all(version());
  options_.signing_key = std::make_shared<const SigningKey>(*SigningKey::Read(others.private_key));
  Export();
  expect_untrusted("no trusted key has signed this manifest.json");

  fs::remove_all(version());
  options_.signing_key = std::make_shared<const SigningKey>(*SigningKey::Read(ours.private_key));
  Export();
  EXPECT_THAT(ServableModel::Load(version(), trusting), IsOk());
  std::string manifest = *ReadFile(version() / "manifest.json", 1 << 20);
  manifest[manifest.size() / 2] ^= 1;
  ASSERT_THAT(WriteFileAtomically(version() / "manifest.json", manifest), IsOk());
  expect_untrusted("no trusted key has signed this manifest.json");
}

// Through what freezing made of each of them: folded batch normalisation, an LSTM, a reconstruction's error.
TEST_F(ServableTest, ExplainsEveryKindOfNetwork) {
  for (const std::string name : {"cnn", "mlp", "lenet5", "cnn_deep", "rnn", "autoencoder"}) {
    const v1::NetworkSpec spec = NetworkOf(name);
    fs::remove_all(directory_ / "models");
    SetNetwork(spec, 3);
    Export();
    const auto model = ServableModel::Load(version());
    ASSERT_THAT(model, IsOk());
    const Samples samples = RandomSamples(spec, 2, 4);
    const size_t image_size = samples.images.size() / 2;
    const std::vector<float> answers = *(*model)->Predict(samples.images, 2);
    const size_t values = answers.size() / 2;
    for (const ExplainMethod method :
         {ExplainMethod::kIntegratedGradients, ExplainMethod::kSaliency, ExplainMethod::kOcclusion}) {
      const auto explained = (*model)->Explain(samples.images, 2, {.method = method, .steps = 100, .patch = 7});
      ASSERT_THAT(explained, IsOk()) << name;
      ASSERT_EQ(explained->size(), 2u);
      for (size_t row = 0; row < 2; ++row) {
        const Explanation& explanation = (*explained)[row];
        const size_t scored = name == "autoencoder" ? values - 1 : explanation.target;
        EXPECT_NEAR(explanation.score, answers[row * values + scored], 1e-5) << name;
        EXPECT_EQ(explanation.map.size(), image_size) << name;
        EXPECT_TRUE(std::ranges::any_of(explanation.map, [](float value) { return value != 0; })) << name;
        EXPECT_LT(explanation.completeness_error, 0.01f) << name;
      }
    }
  }
  const auto model = ServableModel::Load(version());
  EXPECT_THAT((*model)->Explain({}, 0, {}), StatusIs(absl::StatusCode::kInvalidArgument));
}

// One row is computed by other kernels than several.
TEST_F(ServableTest, ARowAloneGetsTheSameAnswerAsAmongOthers) {
  for (const v1::NetworkSpec& spec : {NetworkOf("cnn"), NetworkOf("mlp", 3, 9, 7, 4), NetworkOf("lenet5"),
                                      NetworkOf("cnn_deep"), NetworkOf("rnn"), NetworkOf("autoencoder")}) {
    fs::remove_all(directory_ / "models");
    SetNetwork(spec, 3);
    Export();
    const auto model = ServableModel::Load(version());
    ASSERT_THAT(model, IsOk());
    const Samples samples = RandomSamples(spec, 9, 4);
    const std::vector<float> together = *(*model)->Predict(samples.images, 9);
    const size_t image_size = samples.images.size() / 9, values = together.size() / 9;
    for (size_t row = 0; row < 9; ++row) {
      const auto alone = (*model)->Predict(std::span(samples.images).subspan(row * image_size, image_size), 1);
      ASSERT_THAT(alone, IsOk());
      ASSERT_EQ(alone->size(), values);
      for (size_t k = 0; k < values; ++k) {
        EXPECT_NEAR((*alone)[k], together[row * values + k], 1e-5) << spec.architecture();
      }
    }
  }
}

// What evaluation normalises by, serving does too, and the digest covers it.
TEST_F(ServableTest, StatisticsAreServed) {
  SetNetwork(NetworkOf("cnn_deep"), 3);
  const ParameterTable table = *NetworkParameters(options_.network);
  for (uint64_t i = table.trainable_size(); i < table.size(); ++i) weights_[i] += 0.1f + 0.001f * (i % 7);
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ((*model)->manifest().statistics.size(), 8u);
  EXPECT_EQ((*model)->manifest().statistics[0], "network.norm1_mean");
  EXPECT_EQ((*model)->manifest().parameter_count, table.size());
  auto replica = Replica::Create(options_.network);
  std::copy(weights_.begin(), weights_.end(), (*replica)->parameters().begin());
  const Samples samples = RandomSamples(options_.network, 9, 4);
  const auto evaluated = (*replica)->Evaluate(samples.images, samples.labels);
  const auto probabilities = (*model)->Predict(samples.images, 9);
  ASSERT_THAT(probabilities, IsOk());
  double loss = 0;
  for (size_t i = 0; i < 9; ++i) loss -= std::log((*probabilities)[i * 10 + samples.labels[i]]);
  EXPECT_NEAR(loss, evaluated->loss_sum, 1e-3 * loss);

  torch::jit::Module module = torch::jit::load(version() / "model.pt");
  {
    torch::NoGradGuard no_grad;
    module.attr("network").toModule().attr("norm2_mean").toTensor()[3] += 1e-4;
  }
  ReplaceModule(module);
  ExpectRefused(RefusalReason::kDigest, "weights");
  EditManifest([](nlohmann::json& manifest) { manifest["statistics"][2] = "network.norm9_mean"; });
  ExpectRefused(RefusalReason::kSignature, "network.norm9_mean");
}

TEST_F(ServableTest, ServesReconstructionsAndTheirErrors) {
  const v1::NetworkSpec spec = NetworkOf("autoencoder", 3, 9, 7);
  SetNetwork(spec, 3);
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ((*model)->manifest().output_kind, OutputKind::kReconstruction);
  EXPECT_EQ((*model)->manifest().classes, 0u);
  const Samples samples = RandomSamples(spec, 5, 4);
  const auto answer = (*model)->Predict(samples.images, 5);
  ASSERT_THAT(answer, IsOk());
  const size_t pixels = 3 * 9 * 7;
  ASSERT_EQ(answer->size(), 5 * (pixels + 1));
  double total = 0;
  for (size_t row = 0; row < 5; ++row) {
    double error = 0;
    for (size_t i = 0; i < pixels; ++i) {
      error += std::pow((*answer)[row * (pixels + 1) + i] - samples.images[row * pixels + i] / 255.0, 2) / pixels;
    }
    EXPECT_NEAR((*answer)[row * (pixels + 1) + pixels], error, 1e-6);
    total += error;
  }
  auto replica = Replica::Create(spec);
  (*replica)->InitializeParameters(3);
  EXPECT_NEAR((*replica)->Evaluate(samples.images, samples.labels)->loss_sum, total, 1e-5);
  const std::string config = *ReadFile(version() / "config.pbtxt", 4096);
  EXPECT_THAT(config, HasSubstr("{ name: \"OUTPUT__0\" data_type: TYPE_FP32 dims: [ 3, 9, 7 ] }"));
  EXPECT_THAT(config, HasSubstr("{ name: \"OUTPUT__1\" data_type: TYPE_FP32 dims: [ 1 ] }"));

  EditManifest([](nlohmann::json& manifest) {
    auto& pixel = manifest["golden"]["reconstruction"][190 + 2];
    pixel = pixel.get<double>() + 0.01;
  });
  ExpectRefused(RefusalReason::kGolden, "image 1 value 2");
}

TEST_F(ServableTest, ManifestSaysWhatItIs) {
  options_.test.emplace();
  options_.test->set_loss(0.0625);
  options_.test->set_accuracy(0.5);
  options_.test->set_samples(10);
  const auto exported = ExportServable(options_);
  ASSERT_THAT(exported, IsOk());
  EXPECT_EQ(exported->directory, version());
  EXPECT_FALSE(exported->already_there);
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  const ServableManifest& manifest = (*model)->manifest();
  EXPECT_EQ(manifest.model, "mnist");
  EXPECT_EQ(manifest.version, 430u);
  EXPECT_EQ(manifest.parameter_count, 693962u);
  EXPECT_EQ(manifest.weights_sha256, exported->weights_sha256);
  EXPECT_EQ(manifest.weights_sha256, WeightsSha256(weights_));
  EXPECT_EQ(manifest.torch_version, TorchVersion());
  EXPECT_EQ(manifest.cpu_capability, CpuCapability());
  EXPECT_NE(manifest.cpu_capability, "unknown");
  EXPECT_EQ(manifest.test->accuracy(), 0.5);
  EXPECT_FALSE(manifest.validation.has_value());
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(version())) files.push_back(entry.path().filename());
  EXPECT_THAT(files, UnorderedElementsAre("model.pt", "config.pbtxt", "manifest.json"));
  EXPECT_TRUE(fs::exists(version().parent_path() / "config.pbtxt"));
}

TEST_F(ServableTest, TheReferenceIsOfTheAnswersThatTheVersionGives) {
  constexpr size_t kRows = 100;  // more than are computed at once
  std::vector<uint8_t> images(kRows * 784);
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(i * i / 784 % 256);
  options_.reference_images = images;
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  Distribution expected{.classes = std::vector<uint64_t>(10)};
  expected.Add(*(*model)->Predict(images, kRows), std::span<const uint8_t>(images), kRows);
  const std::optional<Distribution>& reference = (*model)->manifest().reference;
  ASSERT_TRUE(reference.has_value());
  EXPECT_EQ(reference->rows, kRows);
  EXPECT_EQ(reference->ink, expected.ink);
  EXPECT_LT(PopulationStability(reference->classes, expected.classes), 0.01) << "but for ties";
  EXPECT_LT(PopulationStability(reference->confidence, expected.confidence), 0.01);
}

TEST_F(ServableTest, ExportIsIdempotentAndNeverReplaces) {
  Export();
  const auto again = ExportServable(options_);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->already_there);
  weights_[0] += 1;
  EXPECT_THAT(ExportServable(options_), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("other weights")));
  EXPECT_THAT(ServableModel::Load(version()), IsOk());
}

TEST_F(ServableTest, ExportLeavesNothingHalfWritten) {
  // What an exporter that died left behind is no obstacle.
  fs::create_directories(version().parent_path() / ".430.tmp");
  std::ofstream(version().parent_path() / ".430.tmp" / "model.pt") << "torn";
  // The rename fails: the name is taken by a directory that is no version.
  fs::create_directories(version() / "in the way");
  EXPECT_FALSE(ExportServable(options_).ok());
  EXPECT_FALSE(fs::exists(version().parent_path() / ".430.tmp"));
  fs::remove_all(version());
  Export();
}

TEST_F(ServableTest, ExportRefusesWeightsThatAreNotFinite) {
  weights_[17] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(ExportServable(options_), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("weight 17")));
  EXPECT_FALSE(fs::exists(version()));
}

TEST_F(ServableTest, ExportRefusesNamesThatLeaveTheRepository) {
  options_.model_name = "../outside";
  EXPECT_THAT(ExportServable(options_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("../outside")));
}

TEST_F(ServableTest, NoManifestIsNoVersionYet) {
  const auto model = ServableModel::Load(version());
  EXPECT_THAT(model, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(RefusalReasonOf(model.status()), std::nullopt);
}

TEST_F(ServableTest, RefusesATornVersion) {
  Export();
  const auto whole = *ReadFile(version() / "model.pt", 16 << 20);
  ASSERT_THAT(WriteFileAtomically(version() / "model.pt", whole.substr(0, whole.size() / 2)), IsOk());
  ExpectRefused(RefusalReason::kTorn, "model.pt has");
  ASSERT_THAT(WriteFileAtomically(version() / "model.pt", whole + "x"), IsOk());
  ExpectRefused(RefusalReason::kTorn, "longer");
  fs::remove(version() / "model.pt");
  ExpectRefused(RefusalReason::kTorn, "missing");
}

TEST_F(ServableTest, RefusesAFlippedBit) {
  Export();
  auto bytes = *ReadFile(version() / "model.pt", 16 << 20);
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_THAT(WriteFileAtomically(version() / "model.pt", bytes), IsOk());
  ExpectRefused(RefusalReason::kDigest, "SHA-256");
}

TEST_F(ServableTest, RefusesWeightsOtherThanTheManifests) {
  Export();
  torch::jit::Module module = torch::jit::load(version() / "model.pt");
  {
    torch::NoGradGuard no_grad;
    (*module.parameters().begin()).view({-1})[0] += 1e-4;
  }
  ReplaceModule(module);
  ExpectRefused(RefusalReason::kDigest, "weights");
}

TEST_F(ServableTest, RefusesNaN) {
  Export();
  torch::jit::Module module = torch::jit::load(version() / "model.pt");
  {
    torch::NoGradGuard no_grad;
    (*module.parameters().begin()).view({-1})[0] = std::numeric_limits<float>::quiet_NaN();
  }
  ReplaceModule(module);
  ExpectRefused(RefusalReason::kNotFinite, "conv_weight");
}

TEST_F(ServableTest, RefusesOtherAnswersThanTheGoldenOnes) {
  Export();
  EditManifest([](nlohmann::json& manifest) {
    auto& probability = manifest["golden"]["probabilities"][12];
    probability = probability.get<double>() + 0.01;
  });
  ExpectRefused(RefusalReason::kGolden, "image 1 class 2");
}

TEST_F(ServableTest, RefusesAModuleWithAnotherSignature) {
  Export();
  ReplaceModule(LinearScript(784, 10));  // logits of another network
  ExpectRefused(RefusalReason::kSignature, "parameters");
  ASSERT_THAT(WriteFileAtomically(version() / "model.pt", "no module"), IsOk());
  EditManifest([&](nlohmann::json& manifest) {
    manifest["files"][0]["bytes"] = 9;
    manifest["files"][0]["sha256"] = Sha256Hex("no module");
  });
  ExpectRefused(RefusalReason::kSignature, "not a TorchScript module");
}

TEST_F(ServableTest, RefusesAnUnknownFormat) {
  Export();
  EditManifest([](nlohmann::json& manifest) { manifest["format"] = 99; });
  ExpectRefused(RefusalReason::kFormat, "format 99");
  ASSERT_THAT(WriteFileAtomically(version() / "manifest.json", "{"), IsOk());
  ExpectRefused(RefusalReason::kFormat, "not JSON");
}

TEST_F(ServableTest, FloatsOfWholeNumbersGiveTheBitsOfBytes) {
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  const std::vector<uint8_t> images = GoldenImages(1, 28, 28);
  std::vector<float> floats(images.begin(), images.end());
  const auto expected = (*model)->Predict(images, kGoldenImageCount);
  ASSERT_THAT(expected, IsOk());
  const auto answer = (*model)->Predict(floats, kGoldenImageCount);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(*answer, *expected);
  for (float& pixel : floats) pixel = pixel / 2 + 0.25f;  // not what bytes could say
  EXPECT_NE(*(*model)->Predict(floats, kGoldenImageCount), *expected);
  EXPECT_THAT((*model)->Predict(std::span<const float>(floats).first(783), 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ServableTest, RefusesImagesThatDoNotFit) {
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  const std::vector<uint8_t> images(784);
  EXPECT_THAT((*model)->Predict(images, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*model)->Predict(images, 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*model)->Predict(std::span(images).first(783), 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ServableTest, ServesAUsersOwnModule) {
  v1::NetworkSpec spec = NetworkOf("torchscript", 1, 4, 4, 3);
  spec.set_torchscript_path(directory_ / "net.pt");
  DropoutScript(16, 3).save(spec.torchscript_path());
  SetNetwork(spec, 0);
  for (float& weight : weights_) weight *= 2;
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  const std::vector<uint8_t> images = GoldenImages(1, 4, 4);
  EXPECT_EQ(*(*model)->Predict(images, 4), *(*model)->Predict(images, 4));  // no dropout when serving
}

TEST_F(ServableTest, AnswersManyThreadsAtOnce) {
  Export();
  const auto model = ServableModel::Load(version());
  ASSERT_THAT(model, IsOk());
  const std::vector<uint8_t> images = GoldenImages(1, 28, 28);
  const std::vector<float> expected = *(*model)->Predict(images, kGoldenImageCount);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) wrong += *(*model)->Predict(images, kGoldenImageCount) != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace millrace
