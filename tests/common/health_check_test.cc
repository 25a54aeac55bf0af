#include "common/health_check.h"

#include "common/address.h"
#include "common/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/certificates.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

std::string PortOf(const HttpServer& server) { return std::to_string(ParseAddress(server.address()).value().port); }

TEST(HealthCheckTest, AsksWhoListensOnAllAddressesAtTheLoopbackAddress) {
  const auto server = HttpServer::Start({.address = "0.0.0.0:0"}).value();
  EXPECT_THAT(AskHealth("0.0.0.0:" + PortOf(*server), false), IsOk());
  EXPECT_THAT(AskHealth(server->address(), false), IsOk());
}

TEST(HealthCheckTest, AsksAtAUnixSocket) {
  const TemporaryDirectory directory;
  const std::string address = "unix:" + (directory / "http").string();
  const auto server = HttpServer::Start({.address = address}).value();
  EXPECT_THAT(AskHealth(address, false), IsOk());
}

TEST(HealthCheckTest, WantsNoNameInTheCertificate) {
  const TemporaryDirectory directory;
  CertificateAuthority authority(directory / "authority");
  const TlsFiles files = authority.Issue({.alternative_names = "DNS:elsewhere"});
  const auto server = HttpServer::Start({.address = "127.0.0.1:0", .tls = files}).value();
  EXPECT_THAT(AskHealth(server->address(), true), IsOk());
  EXPECT_THAT(AskHealth(server->address(), false), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(HealthCheckTest, AServiceThatIsNotReadyIsAlive) {
  const auto server =
      HttpServer::Start({.address = "127.0.0.1:0", .ready = [] { return absl::UnavailableError("not yet"); }}).value();
  EXPECT_THAT(AskHealth(server->address(), false), IsOk());
}

TEST(HealthCheckTest, SaysWhoDoesNotAnswer) {
  const std::string free = [] { return ListeningSocket::Bind(*ParseAddress("127.0.0.1:0"))->address().ToString(); }();
  EXPECT_THAT(AskHealth(free, false), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(free)));
  EXPECT_THAT(AskHealth("127.0.0.1:0", false), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("port")));
  EXPECT_THAT(AskHealth("nonsense", false), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nonsense")));
}

}  // namespace
}  // namespace millrace
