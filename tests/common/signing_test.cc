#include "common/signing.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/signing_keys.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class SigningTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }

  const TemporaryDirectory directory_;
  const SigningKeyFiles ours_ = WriteSigningKey(directory_ / "ours");
  const SigningKeyFiles others_ = WriteSigningKey(directory_ / "others");
};

TEST_F(SigningTest, ASignatureIsOfOneKeyAndOneMessage) {
  const auto key = SigningKey::Read(ours_.private_key);
  const auto trusted = TrustedKeys::Read(ours_.public_key);
  ASSERT_THAT(key, IsOk());
  ASSERT_THAT(trusted, IsOk());
  std::string signature = *key->Sign("a manifest");
  EXPECT_EQ(*key->Sign("a manifest"), signature) << "Ed25519 is deterministic";
  EXPECT_TRUE(trusted->Signed("a manifest", signature));
  EXPECT_TRUE(trusted->Signed("a manifest", signature + "\n"));
  EXPECT_FALSE(trusted->Signed("a manifest.", signature));
  EXPECT_FALSE(trusted->Signed("", signature));
  EXPECT_FALSE(TrustedKeys::Read(others_.public_key)->Signed("a manifest", signature));
  for (const std::string bad : {"", "AAAA", "no base64!"}) EXPECT_FALSE(trusted->Signed("a manifest", bad)) << bad;
  signature[10] = signature[10] == 'A' ? 'B' : 'A';
  EXPECT_FALSE(trusted->Signed("a manifest", signature)) << "a bit of it is flipped";
}

TEST_F(SigningTest, AnyOfSeveralKeysIsTrusted) {
  const std::string both =
      Write("both", WriteSigningKey(directory_ / "third").public_pem + ours_.public_pem + others_.public_pem);
  const auto trusted = TrustedKeys::Read(both);
  ASSERT_THAT(trusted, IsOk());
  EXPECT_TRUE(trusted->Signed("m", *SigningKey::Read(ours_.private_key)->Sign("m")));
  EXPECT_TRUE(trusted->Signed("m", *SigningKey::Read(others_.private_key)->Sign("m")));
}

TEST_F(SigningTest, FilesThatHoldNoKeysAreRefusedByName) {
  EXPECT_THAT(SigningKey::Read(directory_ / "none"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(SigningKey::Read(ours_.public_key),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds no Ed25519 private key")));
  EXPECT_THAT(TrustedKeys::Read(directory_ / "none"), StatusIs(absl::StatusCode::kNotFound));
  for (const std::string& text :
       {std::string("nothing"), std::string(), ours_.public_pem + "-----BEGIN PUBLIC KEY-----\nAA\n"}) {
    const std::string file = Write("bad", text);
    EXPECT_THAT(TrustedKeys::Read(file), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(file))) << text;
  }
}

}  // namespace
}  // namespace millrace
