// TLS by files: what a process shows of itself and whom it believes. Files are looked at again every few seconds, so
// that certificates can be renewed without a restart; write a new pair under other names and rename (or a Kubernetes
// Secret) so that key and certificate change together.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace CLI {
class App;
}
namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc
struct ssl_ctx_st;

namespace millrace {

// Paths of PEM files; empty where there is none.
struct TlsFiles {
  std::string certificate = {};  // chain, the process's own first
  std::string private_key = {};
  std::string authority = {};  // certificates that peers' certificates must lead to

  bool shows_itself() const { return !certificate.empty(); }
  bool empty() const { return certificate.empty() && authority.empty(); }
};

// Adds --tls-cert, --tls-key and --tls-ca. `files` must outlive the parsing.
void AddTlsFlags(CLI::App& app, TlsFiles& files);

// INVALID_ARGUMENT, naming flag, file and fault: one of certificate and key without the other, a file without what it
// should hold, a key of another certificate; errors of the file system by code.
absl::Status CheckTlsFiles(const TlsFiles& files);

// For files that were checked. A client must show a certificate that leads to the authority, if there is one.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files);
// Of the server, the certificate must lead to the authority (without one: to the system's) and bear the name that was
// dialled. Plain text if `files` is empty.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles& files);

// Makes an OpenSSL server context show the certificate that lies in the files at each handshake. Clients need none: it
// is for probes and scrapers. False if OpenSSL refuses.
bool ServeFromFiles(ssl_ctx_st& context, const TlsFiles& files);

}  // namespace millrace
