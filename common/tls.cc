#include "common/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace millrace {
namespace {

constexpr size_t kPemBytesMax = 1 << 20;
constexpr unsigned kReloadSeconds = 2;

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    free(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

absl::StatusOr<Bio> OpenPem(const char* flag, const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kPemBytesMax);
  if (!text.ok()) return absl::Status(text.status().code(), absl::StrCat(flag, ": ", text.status().message()));
  Bio bio(BIO_new(BIO_s_mem()));
  BIO_write(bio.get(), text->data(), static_cast<int>(text->size()));
  return bio;
}

absl::StatusOr<Certificate> ReadCertificate(const char* flag, const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const Bio bio, OpenPem(flag, path));
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " holds no PEM certificate"));
  }
  return certificate;
}

// A password would be asked for at the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

absl::StatusOr<Key> ReadKey(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const Bio bio, OpenPem("--tls-key", path));
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-key: ", path, " holds no PEM private key without a password"));
  }
  return key;
}

std::shared_ptr<grpc::experimental::CertificateProviderInterface> Watch(const TlsFiles& files) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(files.private_key, files.certificate,
                                                                              files.authority, kReloadSeconds);
}

// OpenSSL asks before each handshake. A pair that cannot be read fails this handshake only.
int LoadCertificate(SSL* connection, void* argument) {
  const TlsFiles& files = *static_cast<const TlsFiles*>(argument);
  const bool loaded = SSL_use_certificate_chain_file(connection, files.certificate.c_str()) == 1 &&
                      SSL_use_PrivateKey_file(connection, files.private_key.c_str(), SSL_FILETYPE_PEM) == 1;
  if (!loaded) {
    ERR_clear_error();
    LogWarning("a TLS handshake failed: the certificate cannot be read", {{"certificate", files.certificate}});
  }
  return loaded ? 1 : 0;
}

void FreeFiles(void*, void* files, CRYPTO_EX_DATA*, int, long, void*) { delete static_cast<TlsFiles*>(files); }

}  // namespace

void AddTlsFlags(CLI::App& app, TlsFiles& files) {
  app.add_option("--tls-cert", files.certificate, "PEM file: own certificate and chain; read again when it changes");
  app.add_option("--tls-key", files.private_key, "PEM file: its private key");
  app.add_option("--tls-ca", files.authority, "PEM file: certificates that those of peers must lead to");
}

absl::Status CheckTlsFiles(const TlsFiles& files) {
  if (files.certificate.empty() != files.private_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together");
  }
  if (!files.authority.empty()) MILLRACE_RETURN_IF_ERROR(ReadCertificate("--tls-ca", files.authority).status());
  if (!files.shows_itself()) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(const Certificate certificate, ReadCertificate("--tls-cert", files.certificate));
  MILLRACE_ASSIGN_OR_RETURN(const Key key, ReadKey(files.private_key));
  const bool belongs = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (belongs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--tls-key: ", files.private_key, " is not the key of ", files.certificate));
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files) {
  grpc::experimental::TlsServerCredentialsOptions options(Watch(files));
  options.watch_identity_key_cert_pairs();
  if (!files.authority.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles& files) {
  if (files.empty()) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(files));
  if (!files.authority.empty()) options.watch_root_certs();
  if (files.shows_itself()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

bool ServeFromFiles(SSL_CTX& context, const TlsFiles& files) {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, FreeFiles);
  auto copy = std::make_unique<TlsFiles>(files);
  if (SSL_CTX_set_min_proto_version(&context, TLS1_2_VERSION) != 1) return false;
  SSL_CTX_set_cert_cb(&context, LoadCertificate, copy.get());
  return SSL_CTX_set_ex_data(&context, index, copy.release()) == 1;  // goes with the context
}

}  // namespace millrace
