#pragma once

#include <string>

#include "absl/status/status.h"

namespace millrace {

// Asks the service that listens on this machine at `http_listen` (as it was given to --http-listen: a wildcard host is
// asked at the loopback address) whether it is alive, over TLS if it shows a certificate; which one is not looked at.
// Blocks for two seconds at most. INVALID_ARGUMENT for what is no address or has port 0, UNAVAILABLE and why if
// nobody answers or the answer is not 200.
absl::Status AskHealth(const std::string& http_listen, bool tls);

}  // namespace millrace
