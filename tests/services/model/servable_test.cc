// Must-hold 5, with versions as the trainer exports them: what is damaged is refused with a reason, metric and report,
// and the version before goes on serving.
#include "common/model/servable.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/files.h"
#include "common/hashing.h"
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/inference_engine.h"
#include "services/model/version_loader.h"
#include "tests/services/model/exported_model.h"
#include "tests/services/model/serving_fixture.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Read(const fs::path& path) { return *ReadFile(path, 1 << 26); }
void Write(const fs::path& path, const std::string& contents) { std::ofstream(path, std::ios::binary) << contents; }

// Puts a NaN where the first weight is, and makes every checksum and digest right again: the archive's, the file's, the
// weights'. Only a look at the weights themselves can find it.
void PlantNan(const fs::path& version, std::vector<float> weights, size_t first_tensor_size) {
  std::string model = Read(version / "model.pt");
  std::string tensor(reinterpret_cast<const char*>(weights.data()), first_tensor_size * sizeof(float));
  const auto checksum_of = [](const std::string& data) {
    const uint32_t checksum = crc32(0, reinterpret_cast<const Bytef*>(data.data()), data.size());
    return std::string(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  };
  const std::string checksum = checksum_of(tensor);
  const size_t at = model.find(tensor);
  ASSERT_NE(at, std::string::npos);
  weights[0] = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(model.data() + at, weights.data(), sizeof(float));
  const std::string new_checksum = checksum_of(model.substr(at, tensor.size()));
  for (size_t hit = 0; (hit = model.find(checksum, hit)) != std::string::npos;) model.replace(hit, 4, new_checksum);
  Write(version / "model.pt", model);

  ServableManifest manifest = *ManifestFromJson(Read(version / "manifest.json"));
  for (ManifestFile& file : manifest.files) {
    if (file.name == "model.pt") file.sha256 = Sha256Hex(model);
  }
  manifest.weights_sha256 = WeightsSha256(weights);
  Write(version / "manifest.json", ManifestToJson(manifest));
}

class ServableTest : public ServingFixture {
 protected:
  static void SetUpTestSuite() { ConfigureTorch(1); }

  ServableTest() : weights_(*InitialParameters(DefaultNetwork(), 1)), shapes_(*NetworkParameters(DefaultNetwork())) {
    loader_ = std::make_unique<VersionLoader>(
        VersionLoader::Options{.repository = root_ / "models", .poll_interval = absl::Milliseconds(1)},
        ServableLoader(), table_, model_metrics_, clock_);
  }

  fs::path Export(uint64_t version) {
    // Different weights per version.
    weights_[1] += 0.001f * version;
    return ExportVersion(root_ / "models", version, weights_);
  }
  void PollAll() { ServingFixture::PollAll(*loader_); }

  void ExpectRefused(const std::string& reason, const std::function<void(const fs::path&)>& damage) {
    Export(10);
    PollAll();
    ASSERT_EQ(Serving(), 10u);
    damage(Export(20));
    PollAll();
    EXPECT_EQ(Serving(), 10u);
    const VersionReport report = table_.Report().front();
    EXPECT_EQ(report.version, 20u);
    EXPECT_EQ(report.state, VersionReport::State::kRefused);
    EXPECT_THAT(report.reason, StartsWith(reason));
    EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_loads_total{model=\"mnist\",reason=\"" + reason +
                                             "\",result=\"refused\"} 1"));
    // The next good one is served.
    Export(30);
    PollAll();
    EXPECT_EQ(Serving(), 30u);
  }

  std::vector<float> weights_;
  ParameterTable shapes_;
  std::unique_ptr<VersionLoader> loader_;
};

TEST_F(ServableTest, ATornVersionIsRefused) {
  ExpectRefused("torn", [](const fs::path& version) { fs::remove(version / "model.pt"); });
}

TEST_F(ServableTest, ATruncatedVersionIsRefused) {
  ExpectRefused("torn", [](const fs::path& version) {
    fs::resize_file(version / "model.pt", fs::file_size(version / "model.pt") / 2);
  });
}

TEST_F(ServableTest, AFlippedBitIsRefused) {
  ExpectRefused("digest", [](const fs::path& version) {
    std::string model = Read(version / "model.pt");
    model[model.size() / 2] ^= 4;
    Write(version / "model.pt", model);
  });
}

TEST_F(ServableTest, ANanIsRefused) {
  ExpectRefused("not_finite",
                [this](const fs::path& version) { PlantNan(version, weights_, shapes_.parameters()[0].size); });
}

TEST_F(ServableTest, ATruncatedManifestIsRefused) {
  ExpectRefused("format", [](const fs::path& version) {
    fs::resize_file(version / "manifest.json", fs::file_size(version / "manifest.json") / 2);
  });
}

TEST_F(ServableTest, AnswersThatDifferFromTheExportersAreRefused) {
  ExpectRefused("golden", [](const fs::path& version) {
    ServableManifest manifest = *ManifestFromJson(Read(version / "manifest.json"));
    manifest.golden.values[0] += manifest.golden.values[0] < 0.5f ? 0.1f : -0.1f;
    Write(version / "manifest.json", ManifestToJson(manifest));
  });
}

TEST_F(ServableTest, AVersionThatIsRepairedIsServed) {
  const fs::path file = Export(10) / "model.pt";
  const std::string model = Read(file);
  Write(file, model.substr(0, 1000));
  PollAll();
  EXPECT_EQ(Serving(), 0u);
  EXPECT_THAT(table_.Find("", 0), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("torn")));
  Write(file, model);
  PollAll();
  EXPECT_EQ(Serving(), 10u);
}

absl::StatusOr<InferenceAnswer> Infer(InferenceEngine& engine, std::shared_ptr<const LoadedVersion> version,
                                      const InferenceRequest& request) {
  std::promise<absl::StatusOr<InferenceAnswer>> promise;
  engine.Infer(std::move(version), request, [&](auto answer) { promise.set_value(std::move(answer)); });
  return promise.get_future().get();
}

TEST_F(ServableTest, PicturesAndRawPixelsOfTheSameDigitGetTheSameAnswer) {
  Export(10);
  PollAll();
  InferenceEngine engine({.executors = 1}, RealClock());
  const auto version = *table_.Find("mnist", 0);
  EXPECT_EQ(version->info().input, (ImageShape{.channels = 1, .height = 28, .width = 28}));
  const Bytes digit =
      Draw(28, 28, [](uint32_t x, uint32_t y) { return x > 12 && x < 16 && y > 3 && y < 24 ? 255 : 0; });
  InferenceRequest request;
  request.input = digit;
  const auto raw = Infer(engine, version, request);
  ASSERT_THAT(raw, IsOk());
  ASSERT_EQ(raw->values.size(), 10u);
  const Bytes png = EncodePng(28, 28, PNG_FORMAT_GRAY, digit.data());
  request.kind = InferenceRequest::Kind::kImage;
  request.input = png;
  const auto picture = Infer(engine, version, request);
  ASSERT_THAT(picture, IsOk());
  EXPECT_EQ(picture->values, raw->values);
}

// With LibTorch's own kernels, which are chosen by the size of a batch.
TEST_F(ServableTest, ADeterministicRowHasTheSameBitsWhateverItsNeighbours) {
  Export(10);
  PollAll();
  InferenceEngine engine({.executors = 1}, RealClock());
  const auto version = *table_.Find("mnist", 0);
  Bytes pixels(33 * 784);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  InferenceRequest request;
  request.deterministic = true;
  request.rows = 33;
  request.input = pixels;
  const auto together = Infer(engine, version, request);
  ASSERT_THAT(together, IsOk());
  request.rows = 1;
  for (size_t row = 0; row < 33; ++row) {
    request.input = std::span(pixels).subspan(row * 784, 784);
    const auto alone = Infer(engine, version, request);
    ASSERT_THAT(alone, IsOk());
    EXPECT_TRUE(std::equal(alone->values.begin(), alone->values.end(),
                           together->values.begin() + static_cast<ptrdiff_t>(row * 10)))
        << "row " << row;
  }
}

}  // namespace
}  // namespace millrace
