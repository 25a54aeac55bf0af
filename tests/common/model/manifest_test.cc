#include "common/model/manifest.h"

#include <cmath>
#include <string>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

ServableManifest Example() {
  ServableManifest manifest;
  manifest.model = "mnist";
  manifest.version = 430;
  manifest.epoch = 1;
  manifest.architecture = "cnn";
  manifest.channels = 1;
  manifest.height = 28;
  manifest.width = 27;
  manifest.classes = 2;
  manifest.parameter_count = 12;
  manifest.weights_sha256 = std::string(64, 'a');
  manifest.validation.emplace();
  manifest.validation->set_version(430);
  manifest.validation->set_epoch(1);
  manifest.validation->set_loss(0.25);
  manifest.validation->set_accuracy(0.875);
  manifest.validation->set_samples(5000);
  manifest.seed = UINT64_MAX;
  manifest.dataset_fingerprint = std::string(64, 'b');
  manifest.torch_version = "1.13.1";
  manifest.cpu_capability = "AVX2";
  manifest.golden = {2, {0.1f, 0.9f, 1e-8f, 1.0f}};
  manifest.files = {{"model.pt", 1234, std::string(64, 'c')}, {"config.pbtxt", 5, std::string(64, 'd')}};
  return manifest;
}

TEST(ManifestTest, SurvivesTheRoundTrip) {
  const ServableManifest manifest = Example();
  const absl::StatusOr<ServableManifest> read = ManifestFromJson(ManifestToJson(manifest));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(ManifestToJson(*read), ManifestToJson(manifest));
  EXPECT_EQ(read->seed, UINT64_MAX);
  EXPECT_EQ(read->golden.values, manifest.golden.values);  // every bit of a float32
  EXPECT_EQ(read->model_sha256(), std::string(64, 'c'));
  ASSERT_TRUE(read->validation.has_value());
  EXPECT_EQ(read->validation->loss(), 0.25);
  EXPECT_FALSE(read->test.has_value());
}

TEST(ManifestTest, AReconstructionSurvivesTheRoundTrip) {
  ServableManifest manifest = Example();
  manifest.height = manifest.width = 2;
  manifest.output_kind = OutputKind::kReconstruction;
  manifest.classes = 0;
  manifest.validation->clear_accuracy();
  manifest.statistics = {"network.mean", "network.variance"};
  manifest.golden = {2, std::vector<float>(2 * (4 + 1), 0.25f)};
  EXPECT_EQ(manifest.values_per_row(), 5u);
  const absl::StatusOr<ServableManifest> read = ManifestFromJson(ManifestToJson(manifest));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(ManifestToJson(*read), ManifestToJson(manifest));
  EXPECT_EQ(read->output_kind, OutputKind::kReconstruction);
  EXPECT_EQ(read->statistics, manifest.statistics);
  EXPECT_FALSE(read->validation->has_accuracy());
  EXPECT_EQ(read->golden.values.size(), 10u);
  for (const auto& [path, value, why] : std::vector<std::tuple<const char*, nlohmann::json, const char*>>{
           {"/output_kind", "probabilities", "outputs"},
           {"/output_kind", "segments", "segments"},
           {"/outputs/1/name", "error", "OUTPUT__1"},
           {"/outputs/0/shape", {-1, 1, 2, 3}, "an image like the input's"},
           {"/statistics/0", 1, "statistics"},
           {"/golden/reconstruction", {1}, "golden.reconstruction"}}) {
    auto changed = nlohmann::json::parse(ManifestToJson(manifest));
    changed[nlohmann::json::json_pointer(path)] = value;
    EXPECT_THAT(ManifestFromJson(changed.dump()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why))) << path;
  }
}

TEST(ManifestTest, KeepsALossThatDiverged) {
  ServableManifest manifest = Example();
  manifest.validation->set_loss(std::nan(""));
  const absl::StatusOr<ServableManifest> read = ManifestFromJson(ManifestToJson(manifest));
  ASSERT_THAT(read, IsOk());
  EXPECT_TRUE(std::isnan(read->validation->loss()));
}

TEST(ManifestTest, NamesTheFieldThatIsMissing) {
  const auto whole = nlohmann::json::parse(ManifestToJson(Example()));
  for (const auto& [field, value] : whole.items()) {
    nlohmann::json without = whole;
    without.erase(field);
    if (field != "output_kind") {  // has a default: older versions did not say
      EXPECT_THAT(ManifestFromJson(without.dump()),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("field " + field)));
    }
    nlohmann::json wrong = whole;
    wrong[field] = nlohmann::json::array({1.5});
    EXPECT_THAT(ManifestFromJson(wrong.dump()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field)));
  }
}

TEST(ManifestTest, AReferenceSurvivesTheRoundTripAndMustAddUp) {
  ServableManifest manifest = Example();
  manifest.reference.emplace();
  manifest.reference->rows = 10;
  manifest.reference->classes = {4, 6};
  manifest.reference->confidence[19] = 10;
  manifest.reference->ink[3] = 10;
  const absl::StatusOr<ServableManifest> read = ManifestFromJson(ManifestToJson(manifest));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->reference, manifest.reference);
  EXPECT_EQ(ManifestFromJson(ManifestToJson(Example()))->reference, std::nullopt);
  const auto whole = nlohmann::json::parse(ManifestToJson(manifest));
  for (const auto& [path, value] :
       std::vector<std::pair<std::string, nlohmann::json>>{{"/reference/rows", 0},
                                                           {"/reference/rows", uint64_t{1} << 40},
                                                           {"/reference/classes", {4, 5}},
                                                           {"/reference/classes", {4, 6, 0}},
                                                           {"/reference/classes", {10, "x"}},
                                                           {"/reference/confidence/0", 1},
                                                           {"/reference/ink/3", -10},
                                                           {"/reference/ink/3", UINT64_MAX}}) {
    nlohmann::json changed = whole;
    changed[nlohmann::json::json_pointer(path)] = value;
    EXPECT_THAT(ManifestFromJson(changed.dump()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("reference.")))
        << path << " " << value;
  }
}

TEST(ManifestTest, RefusesWhatItDoesNotUnderstand) {
  const auto whole = nlohmann::json::parse(ManifestToJson(Example()));
  const auto refused = [&](const char* path, nlohmann::json value, const std::string& why) {
    nlohmann::json changed = whole;
    changed[nlohmann::json::json_pointer(path)] = std::move(value);
    EXPECT_THAT(ManifestFromJson(changed.dump()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why))) << path;
  };
  refused("/format", 2, "format 2");
  refused("/inputs/0/name", "x", "INPUT__0");
  refused("/inputs/0/shape", {-1, 28, 27}, "inputs");
  refused("/inputs/0/shape/1", 0, "inputs");
  refused("/outputs/0/shape/0", 5, "OUTPUT__0");
  refused("/golden/images", 3, "golden.probabilities");
  refused("/golden/probabilities/0", "x", "golden.probabilities");
  refused("/files/0/name", "../model.pt", "plain file name");
  refused("/files/0/name", "other.pt", "does not name model.pt");
  refused("/files/0/bytes", -1, "bytes");
  EXPECT_THAT(ManifestFromJson("{"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ManifestFromJson("[]"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ManifestTest, GoldenImagesAreFixed) {
  const std::vector<uint8_t> images = GoldenImages(1, 2, 2);
  ASSERT_EQ(images.size(), kGoldenImageCount * 4);
  EXPECT_EQ(images, GoldenImages(1, 2, 2));
  // Written down, so that an accidental change shows here and not as a refusal of every version ever exported.
  EXPECT_THAT(std::vector<uint8_t>(images.begin(), images.begin() + 4), ::testing::ElementsAre(227, 96, 14, 88));
}

}  // namespace
}  // namespace millrace
