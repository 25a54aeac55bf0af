#include "common/address.h"

#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, ParsesAndPrintsEveryForm) {
  for (const char* text : {"127.0.0.1:0", "localhost:8500", "[::1]:65535", "unix:/run/x.sock", "unix:x"}) {
    const absl::StatusOr<Address> address = ParseAddress(text);
    ASSERT_THAT(address, IsOk());
    EXPECT_EQ(address->ToString(), text);
  }
  EXPECT_EQ(ParseAddress("[::1]:5")->host, "::1");
  EXPECT_TRUE(ParseAddress("unix:/a")->is_unix());
}

TEST(AddressTest, KnowsWhatOnlyThisMachineCanReach) {
  for (const char* local : {"127.0.0.1:80", "127.8.8.8:80", "localhost:0", "[::1]:80", "unix:/a"}) {
    EXPECT_TRUE(ParseAddress(local)->is_local()) << local;
  }
  for (const char* open : {"0.0.0.0:80", "[::]:80", "10.0.0.1:80", "localhost.example.org:80"}) {
    EXPECT_FALSE(ParseAddress(open)->is_local()) << open;
  }
}

TEST(AddressTest, RefusesTheRestNamingTheText) {
  const std::string long_path = "unix:/" + std::string(107, 'x');
  for (const std::string text : {"", "8500", ":8500", "host:", "host:x", "host:65536", "host:-1", "host:+1", "host: 1",
                                 "::1:80", "unix:", long_path.c_str()}) {
    EXPECT_THAT(ParseAddress(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'" + text + "'")));
  }
  EXPECT_THAT(ParseAddress("unix:/" + std::string(106, 'x')), IsOk());
}

TEST(ListeningSocketTest, TellsThePortItGot) {
  const absl::StatusOr<ListeningSocket> socket = ListeningSocket::Bind(*ParseAddress("127.0.0.1:0"));
  ASSERT_THAT(socket, IsOk());
  EXPECT_NE(socket->address().port, 0);
  const int client = ConnectTo(socket->address().ToString());
  EXPECT_GE(client, 0);
  close(client);
}

TEST(ListeningSocketTest, APortInUseIsAClearError) {
  const absl::StatusOr<ListeningSocket> first = ListeningSocket::Bind(*ParseAddress("127.0.0.1:0"));
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(ListeningSocket::Bind(first->address()),
              StatusIs(absl::StatusCode::kAlreadyExists,
                       "cannot listen on " + first->address().ToString() + ": address already in use"));
}

TEST(ListeningSocketTest, AUnixSocketInUseIsAClearErrorAndIsLeftAlone) {
  TemporaryDirectory directory;
  const Address address = *ParseAddress("unix:" + (directory / "s").string());
  const absl::StatusOr<ListeningSocket> first = ListeningSocket::Bind(address);
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(ListeningSocket::Bind(address), StatusIs(absl::StatusCode::kAlreadyExists));
  const int client = ConnectTo(address.ToString());
  EXPECT_GE(client, 0);
  close(client);
}

TEST(ListeningSocketTest, AUnixSocketOfADeadProcessIsReplaced) {
  TemporaryDirectory directory;
  const Address address = *ParseAddress("unix:" + (directory / "s").string());
  absl::StatusOr<ListeningSocket> dead = ListeningSocket::Bind(address);
  ASSERT_THAT(dead, IsOk());
  close(dead->Release());  // without removing the file, as a crash does
  ASSERT_TRUE(std::filesystem::exists(directory / "s"));
  EXPECT_THAT(ListeningSocket::Bind(address), IsOk());
}

TEST(ListeningSocketTest, AFileInTheWayIsNotReplacedIfItIsNoSocket) {
  TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "s");
  EXPECT_THAT(ListeningSocket::Bind(*ParseAddress("unix:" + (directory / "s").string())),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_TRUE(std::filesystem::exists(directory / "s"));
}

TEST(ListeningSocketTest, RemovesItsFile) {
  TemporaryDirectory directory;
  const Address address = *ParseAddress("unix:" + (directory / "s").string());
  { ASSERT_THAT(ListeningSocket::Bind(address), IsOk()); }
  EXPECT_FALSE(std::filesystem::exists(directory / "s"));
}

TEST(ListeningSocketTest, AHostWithoutAddressIsNotFound) {
  EXPECT_THAT(ListeningSocket::Bind(*ParseAddress("no-such-host.invalid:0")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no-such-host.invalid")));
}

}  // namespace
}  // namespace millrace
