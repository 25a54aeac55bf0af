#include "common/tls.h"

#include <fstream>
#include <memory>
#include <string>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "common/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "httplib.h"
#include "tests/common/fake_model_service.h"
#include "tests/testing/certificates.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class TlsTest : public ::testing::Test {
 protected:
  std::string Serve(const TlsFiles& files) {
    server_ =
        GrpcServer::Start({.address = "127.0.0.1:0", .credentials = MakeServerCredentials(files)}, {&service_}).value();
    return server_->address();
  }
  // On a connection of its own.
  static absl::Status Call(const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(5));
    v1::PredictResponse response;
    return FromGrpcStatus(
        v1::ModelService::NewStub(MakeChannel(address, credentials))->Predict(&context, {}, &response));
  }
  static absl::Status Call(const std::string& address, const TlsFiles& files) {
    return Call(address, MakeChannelCredentials(files));
  }
  void ExpectRefused(const absl::Status& status) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(service_.calls, 0) << "the handler was reached";
  }

  const TemporaryDirectory directory_;
  CertificateAuthority authority_{directory_ / "ours"};
  CertificateAuthority stranger_{directory_ / "strange", "stranger"};
  const TlsFiles service_files_ = authority_.Issue({.name = "service"});
  const TlsFiles client_files_ = authority_.Issue({.name = "client", .alternative_names = "DNS:client"});
  FakeModelService service_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(TlsTest, PeersOfOneAuthorityUnderstandEachOther) {
  EXPECT_THAT(Call(Serve(service_files_), client_files_), IsOk());
}

TEST_F(TlsTest, APlainTextClientIsRefused) { ExpectRefused(Call(Serve(service_files_), nullptr)); }

TEST_F(TlsTest, AClientWithoutACertificateIsRefused) {
  ExpectRefused(Call(Serve(service_files_), authority_.AuthorityOnly()));
}

TEST_F(TlsTest, WithoutAnAuthorityClientsNeedNoCertificate) {
  TlsFiles files = service_files_;
  files.authority.clear();
  EXPECT_THAT(Call(Serve(files), authority_.AuthorityOnly()), IsOk());
}

TEST_F(TlsTest, AClientOfAnotherAuthorityIsRefused) {
  TlsFiles files = stranger_.Issue({.name = "client"});
  files.authority = client_files_.authority;  // it believes the service, which does not believe it
  ExpectRefused(Call(Serve(service_files_), files));
}

TEST_F(TlsTest, AServiceOfAnotherAuthorityIsNotBelieved) {
  TlsFiles files = client_files_;
  files.authority = stranger_.AuthorityOnly().authority;
  ExpectRefused(Call(Serve(service_files_), files));
}

TEST_F(TlsTest, AServiceUnderAnotherNameIsNotBelieved) {
  ExpectRefused(Call(Serve(authority_.Issue({.name = "other", .alternative_names = "DNS:elsewhere"})), client_files_));
}

TEST_F(TlsTest, AnExpiredCertificateIsNotBelieved) {
  ExpectRefused(Call(Serve(authority_.Issue({.name = "old", .valid_for = -absl::Hours(1)})), client_files_));
  const TlsFiles old_client =
      authority_.Issue({.name = "old-client", .alternative_names = "DNS:client", .valid_for = -absl::Hours(1)});
  ExpectRefused(Call(Serve(service_files_), old_client));
}

TEST_F(TlsTest, CertificatesAreRenewedWithoutARestart) {
  const std::string address = Serve(service_files_);
  const auto long_lived = MakeChannelCredentials(client_files_);
  ASSERT_THAT(Call(address, long_lived), IsOk());
  // A new authority takes over: every file is replaced under its old name.
  CertificateAuthority successor(directory_ / "ours");
  successor.Issue({.name = "service"});
  successor.Issue({.name = "client", .alternative_names = "DNS:client"});
  const auto fresh = MakeChannelCredentials(client_files_);
  EXPECT_TRUE(Eventually([&] { return Call(address, fresh).ok(); })) << "the service shows its new certificate";
  EXPECT_TRUE(Eventually([&] { return Call(address, long_lived).ok(); })) << "and the client that was there its own";
}

TEST_F(TlsTest, AUnixSocketIsPlainText) {
  const std::string address = "unix:" + (directory_ / "socket").string();
  const auto server =
      GrpcServer::Start({.address = address, .credentials = MakeServerCredentials(service_files_)}, {&service_})
          .value();
  EXPECT_THAT(Call(address, client_files_), IsOk());
  EXPECT_THAT(Call(address, nullptr), IsOk());
}

class HttpsTest : public TlsTest {
 protected:
  static int Get(const std::string& address, const std::string& authority) {
    httplib::SSLClient client("127.0.0.1", ParseAddress(address)->port);
    client.set_ca_cert_path(authority.c_str());
    client.enable_server_certificate_verification(true);
    const httplib::Result result = client.Get("/healthz");
    return result ? result->status : 0;
  }
};

TEST_F(HttpsTest, ShowsTheNewestCertificateAndAsksForNone) {
  const auto server = HttpServer::Start({.address = "127.0.0.1:0", .tls = service_files_}).value();
  EXPECT_EQ(Get(server->address(), service_files_.authority), 200);
  EXPECT_EQ(Get(server->address(), stranger_.AuthorityOnly().authority), 0);
  EXPECT_NE(HttpFetch(server->address(), "/healthz").status, 200) << "plain text";

  CertificateAuthority successor(directory_ / "successor");
  const TlsFiles renewed = successor.Issue({.name = "service"});
  std::filesystem::rename(renewed.private_key, service_files_.private_key);
  std::filesystem::rename(renewed.certificate, service_files_.certificate);
  EXPECT_EQ(Get(server->address(), successor.AuthorityOnly().authority), 200);
  std::ofstream(service_files_.certificate) << "half of a";
  EXPECT_EQ(Get(server->address(), successor.AuthorityOnly().authority), 0) << "for as long as it cannot be read";
}

TEST_F(TlsTest, FilesThatDoNotGoTogetherAreNamed) {
  EXPECT_THAT(CheckTlsFiles({}), IsOk());
  EXPECT_THAT(CheckTlsFiles(service_files_), IsOk());
  EXPECT_THAT(CheckTlsFiles(authority_.AuthorityOnly()), IsOk());
  const auto expect_refused = [](const TlsFiles& files, absl::StatusCode code, const std::string& message) {
    EXPECT_THAT(CheckTlsFiles(files), StatusIs(code, HasSubstr(message)));
  };
  using enum absl::StatusCode;
  expect_refused({.certificate = service_files_.certificate}, kInvalidArgument, "--tls-cert and --tls-key go together");
  expect_refused({.private_key = service_files_.private_key}, kInvalidArgument, "--tls-cert and --tls-key go together");
  expect_refused({.authority = directory_ / "nothing"}, kNotFound, "--tls-ca: ");
  const std::string junk = directory_ / "junk";
  std::ofstream(junk) << "-----BEGIN CERTIFICATE-----\nAAAA\n";
  expect_refused({.authority = junk}, kInvalidArgument, junk + " holds no PEM certificate");
  expect_refused({.certificate = junk, .private_key = service_files_.private_key}, kInvalidArgument, "--tls-cert: ");
  expect_refused({.certificate = service_files_.certificate, .private_key = junk}, kInvalidArgument, "--tls-key: ");
  expect_refused({.certificate = service_files_.certificate, .private_key = client_files_.private_key},
                 kInvalidArgument, "is not the key of");
}

}  // namespace
}  // namespace millrace
