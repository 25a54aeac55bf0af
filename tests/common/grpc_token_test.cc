#include "common/grpc_token.h"

#include <fstream>
#include <memory>
#include <string>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "common/metrics.h"
#include "common/tls.h"
#include "gmock/gmock.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "tests/common/fake_model_service.h"
#include "tests/testing/certificates.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using enum absl::StatusCode;

class GrpcTokenTest : public ::testing::Test {
 protected:
  std::unique_ptr<GrpcServer> Serve(const std::string& address) {
    TlsFiles files = authority_.Issue({.name = "service"});
    files.authority.clear();  // clients show the token, and no certificate
    return GrpcServer::Start({.address = address,
                              .metrics = &metrics_,
                              .credentials = MakeServerCredentials(files),
                              .token_file = WriteToken("asked", "the-token-of-this-run")},
                             {&service_})
        .value();
  }
  std::string WriteToken(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }
  std::shared_ptr<grpc::ChannelCredentials> Encrypted() { return MakeChannelCredentials(authority_.AuthorityOnly()); }
  absl::Status Call(const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(5));
    v1::PredictResponse response;
    return FromGrpcStatus(
        v1::ModelService::NewStub(MakeChannel(server_->address(), credentials))->Predict(&context, {}, &response));
  }

  const TemporaryDirectory directory_;
  CertificateAuthority authority_{directory_ / "tls"};
  Metrics metrics_{"test"};
  FakeModelService service_;
  std::unique_ptr<GrpcServer> server_ = Serve("127.0.0.1:0");
};

TEST_F(GrpcTokenTest, ACallThatShowsTheTokenIsLetIn) {
  EXPECT_THAT(Call(ShowToken(Encrypted(), WriteToken("shown", "the-token-of-this-run"))), IsOk());
}

TEST_F(GrpcTokenTest, OthersAreRefusedBeforeTheHandlerAndCounted) {
  EXPECT_THAT(Call(Encrypted()), StatusIs(kUnauthenticated));
  EXPECT_THAT(Call(ShowToken(Encrypted(), WriteToken("other", "the-token-of-operators"))), StatusIs(kPermissionDenied));
  EXPECT_EQ(service_.calls, 0);
  for (const std::string code : {"UNAUTHENTICATED", "PERMISSION_DENIED"}) {
    EXPECT_THAT(metrics_.Render(), HasSubstr("grpc_server_handled_total{grpc_code=\"" + code +
                                             "\",grpc_method=\"/millrace.v1.ModelService/Predict\"} 1"));
  }
}

TEST_F(GrpcTokenTest, ANewTokenNeedsNoRestartOnEitherSide) {
  const std::string shown = WriteToken("shown", "the-token-of-this-run");
  const auto credentials = ShowToken(Encrypted(), shown);
  WriteToken("asked", "the-token-of-this-run\nthe-successor-of-it");
  EXPECT_THAT(Call(credentials), IsOk());
  WriteToken("shown", "the-successor-of-it");
  EXPECT_THAT(Call(credentials), IsOk());
  WriteToken("asked", "the-successor-of-it");
  EXPECT_THAT(Call(credentials), IsOk());
}

TEST_F(GrpcTokenTest, AProbeNeedsNone) {
  RawStream health(MakeChannel(server_->address(), Encrypted()), "/grpc.health.v1.Health/Check");
  health.Write("");
  health.WritesDone();
  EXPECT_NE(health.Read(), std::nullopt);
  EXPECT_TRUE(health.Finish().ok());
}

TEST_F(GrpcTokenTest, AUnixSocketAsksForNone) {
  server_ = Serve("unix:" + (directory_ / "socket").string());
  EXPECT_THAT(Call(nullptr), IsOk());
}

TEST_F(GrpcTokenTest, ATokenThatCannotBeReadFailsTheCall) {
  EXPECT_THAT(Call(ShowToken(Encrypted(), directory_ / "nothing")), StatusIs(kUnavailable, HasSubstr("nothing")));
  EXPECT_EQ(service_.calls, 0);
}

TEST_F(GrpcTokenTest, TheFlagNamesWhatIsWrong) {
  const std::string token = WriteToken("token", "the-token-of-this-run");
  EXPECT_THAT(CheckRunTokenFile(token, true), IsOk());
  EXPECT_THAT(CheckRunTokenFile(token, false), StatusIs(kInvalidArgument, HasSubstr("plain text")));
  EXPECT_THAT(CheckRunTokenFile(directory_ / "nothing", true), StatusIs(kNotFound, HasSubstr("--run-token-file: ")));
  EXPECT_THAT(CheckRunTokenFile(WriteToken("short", "short"), true), StatusIs(kInvalidArgument, HasSubstr("16")));
}

}  // namespace
}  // namespace millrace
