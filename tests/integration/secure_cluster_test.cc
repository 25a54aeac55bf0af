// The whole system where nobody trusts the network: every part shows a certificate and the run's token and asks for
// them, versions are signed, and what is trained is the same.
#include <filesystem>

#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/signing.h"
#include "common/tls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/certificates.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/signing_keys.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

class SecureClusterTest : public ::testing::Test {
 protected:
  SecureClusterTest() { WriteIdxDataset(directory_ / "data"); }

  static Flags Joined(Flags flags, const Flags& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }
  Program Run(const std::string& program, const std::string& name, const Flags& flags) {
    return Program(program, Joined(flags, TlsFlags(authority_.Issue({.name = name}))), directory_ / (name + ".stderr"));
  }
  Program Serve(const std::string& program, const std::string& name, const Flags& flags) {
    return Run(program, name,
               Joined(flags, {"--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--run-token-file", token_}));
  }
  Program Work(const std::string& name, const std::string& coordinator, const Flags& flags) {
    return Run("millrace-worker", name,
               Joined(flags, {"--coordinator", coordinator, "--name", name, "--http-listen", "127.0.0.1:0"}));
  }
  // Before it is known whether there is such a method.
  grpc::StatusCode CallWithoutToken(Program& part) {
    const auto credentials = MakeChannelCredentials(authority_.Issue({.name = "stranger"}));
    RawStream call(MakeChannel(part.WaitForAddresses().grpc, credentials), "/millrace.v1.Anything/Anything");
    call.WritesDone();
    call.Read();
    return call.Finish().error_code();
  }
  std::string WriteToken(const std::string& name, const std::string& token) {
    EXPECT_THAT(WriteFileAtomically(directory_ / name, token), IsOk());
    return directory_ / name;
  }
  std::string QuietDigest() {
    ClusterProcess quiet(directory_ / "quiet", directory_ / "data",
                         {"--epochs", "2", "--batch-size", "64", "--seed", "3", "--workers", "1", "--no-serving"});
    return Finish(quiet)["weights_sha256"];
  }
  std::string WriteJob() {
    JobFlags flags;
    flags.batch_size = 64;
    flags.epochs = 2;
    flags.seed = 3;
    EXPECT_THAT(OutputDirectory::Open(out_, "", false)->WriteJob(*MakeJobSpec(flags, nullptr, 1600)), IsOk());
    return out_ + "/job.textproto";
  }

  const TemporaryDirectory directory_;
  const std::string out_ = directory_ / "out";
  CertificateAuthority authority_{directory_ / "tls"};
  const std::string token_ = WriteToken("run-token", "the-token-of-this-run");
};

TEST_F(SecureClusterTest, TrainsTheSameBitsAndServesThem) {
  const SigningKeyFiles keys = WriteSigningKey(directory_ / "release");
  Program data = Serve("millrace-data", "data", {"--data-dir", directory_ / "data"});
  Program first = Serve("millrace-ps", "shard-0",
                        {"--shard", "0", "--num-shards", "2", "--job", WriteJob(), "--output", out_, "--data",
                         data.WaitForAddresses().grpc, "--sign-key", keys.private_key});
  const std::string coordinator = first.WaitForAddresses().grpc;
  Program second = Serve("millrace-ps", "shard-1", {"--shard", "1", "--num-shards", "2", "--coordinator", coordinator});
  Program model = Serve("millrace-model", "model",
                        {"--repository", directory_ / "models", "--source", coordinator, "--trusted-keys",
                         keys.public_key, "--drain-seconds", "0"});
  for (Program* part : {&data, &first, &second}) {
    EXPECT_EQ(CallWithoutToken(*part), grpc::StatusCode::UNAUTHENTICATED);
  }
  Program tokenless = Work("tokenless", coordinator, {});
  EXPECT_EQ(tokenless.Wait(), 78);
  EXPECT_THAT(tokenless.Errors(), HasSubstr("authorization: Bearer TOKEN"));
  Program operators = Work("operators", coordinator, {"--run-token-file", WriteToken("admin", "the-operators-token")});
  EXPECT_EQ(operators.Wait(), 78);
  EXPECT_THAT(operators.Errors(), HasSubstr("not the token of this service"));
  Program worker = Work("worker-0", coordinator, {"--run-token-file", token_});
  EXPECT_EQ(worker.Wait(), 0) << worker.Errors();

  const std::string target = model.WaitForAddresses().grpc;
  const std::string digit = directory_ / "digit.png";
  WriteDigitPng(digit, 7);
  const Flags predict = {"predict", "--target", target, digit};
  EXPECT_TRUE(Eventually([&] { return Run("millrace", "client", predict).Wait() == 0; }));
  EXPECT_NE(Program("millrace", predict, directory_ / "plain.stderr").Wait(), 0) << "a client in plain text";
  EXPECT_NE(HttpFetch(model.WaitForAddresses().http, "/metrics").status, 200) << "metrics in plain text";

  const Flags status = {"status", "--target", coordinator};
  EXPECT_EQ(Run("millrace", "client", Joined(status, {"--run-token-file", token_})).Wait(), 0);
  EXPECT_NE(Run("millrace", "client", status).Wait(), 0) << "a client without the run's token";
  EXPECT_NE(Program("millrace", {"status", "--target", coordinator}, directory_ / "plain.stderr").Wait(), 0);
  const std::string expected = QuietDigest();
  EXPECT_TRUE(Eventually([&] { return NewestDigest(directory_ / "models") == expected; }));
}

TEST_F(SecureClusterTest, AWholeRunSignsWhatItExports) {
  const SigningKeyFiles keys = WriteSigningKey(directory_ / "release");
  ClusterProcess run(out_, directory_ / "data",
                     {"--epochs", "1", "--batch-size", "64", "--no-serving", "--sign-key", keys.private_key});
  Finish(run);
  const fs::path versions = fs::path(out_) / "models/mnist";
  const fs::path version = versions / std::to_string(NumberedEntries(versions).at(0));
  const std::string manifest = *ReadFile(version / "manifest.json", 1 << 20);
  EXPECT_TRUE(TrustedKeys::Read(keys.public_key)->Signed(manifest, *ReadFile(version / "manifest.sig", 1024)));

  ClusterProcess refused(directory_ / "refused", directory_ / "data", {"--sign-key", keys.public_key});
  EXPECT_EQ(refused.Wait(), 78);
  EXPECT_THAT(refused.program().Errors(), HasSubstr(keys.public_key));
}

}  // namespace
}  // namespace millrace
