#include "common/health_check.h"

#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/status_macros.h"
#include "httplib.h"

namespace millrace {
namespace {

constexpr time_t kTimeoutSeconds = 2;

// Whom to ask for the listener at `address`.
std::string UrlOf(const Address& address, bool tls) {
  if (address.is_unix()) return address.unix_path;
  const bool any4 = address.host == "0.0.0.0", any6 = address.host == "::";
  const Address asked{.host = any4 ? "127.0.0.1" : any6 ? "::1" : address.host, .port = address.port, .unix_path = {}};
  return absl::StrCat(tls ? "https://" : "http://", asked.ToString());
}

}  // namespace

absl::Status AskHealth(const std::string& http_listen, bool tls) {
  MILLRACE_ASSIGN_OR_RETURN(const Address address, ParseAddress(http_listen));
  if (!address.is_unix() && address.port == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--http-listen ", http_listen, ": which port is not known"));
  }
  httplib::Client client(UrlOf(address, tls));
  if (address.is_unix()) client.set_address_family(AF_UNIX);
  client.enable_server_certificate_verification(false);
  client.set_connection_timeout(kTimeoutSeconds);
  client.set_read_timeout(kTimeoutSeconds);
  const httplib::Result answer = client.Get("/healthz");
  if (!answer) {
    return absl::UnavailableError(absl::StrCat(http_listen, " does not answer: ", httplib::to_string(answer.error())));
  }
  if (answer->status == 200) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(http_listen, " answers ", answer->status));
}

}  // namespace millrace
