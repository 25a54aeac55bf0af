#include "services/cli/sign_command.h"

#include <filesystem>
#include <fstream>

#include "common/command_line.h"
#include "common/files.h"
#include "common/model/manifest.h"
#include "common/signing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/signing_keys.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(SignCommandTest, SignsEveryVersionThatIsOneAndGoesOnAfterABadOne) {
  const TemporaryDirectory directory;
  ServableManifest manifest;
  manifest.model = "mnist";
  manifest.version = 12;
  manifest.architecture = "cnn";
  manifest.channels = manifest.height = manifest.width = manifest.classes = 1;
  manifest.golden = {1, {1.0f}};
  manifest.files = {{"model.pt", 1, "digest"}};
  const std::string json = ManifestToJson(manifest);
  fs::create_directory(directory / "12");
  std::ofstream(directory / "12/manifest.json") << json;
  fs::create_directory(directory / "13");
  std::ofstream(directory / "13/manifest.json") << "{}";
  const SigningKeyFiles keys = WriteSigningKey(directory / "key");

  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunSign({.key = keys.private_key, .versions = {directory / "13", directory / "none", directory / "12"}}),
            kExitFailure);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("signed mnist version 12\n"));
  const std::string errors = testing::internal::GetCapturedStderr();
  EXPECT_THAT(errors, HasSubstr((directory / "13").string() + ": manifest"));
  EXPECT_THAT(errors, HasSubstr((directory / "none").string() + ": "));
  EXPECT_FALSE(fs::exists(directory / "13/manifest.sig"));
  EXPECT_TRUE(TrustedKeys::Read(keys.public_key)->Signed(json, *ReadFile(directory / "12/manifest.sig", 1024)));

  testing::internal::CaptureStderr();
  EXPECT_EQ(RunSign({.key = keys.public_key, .versions = {directory / "12"}}), kExitBadConfiguration);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("--key: "));
}

}  // namespace
}  // namespace millrace
