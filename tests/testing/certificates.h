#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/tls.h"

struct evp_pkey_st;
struct x509_st;

namespace millrace {

// An authority that signs certificates for tests, and writes them as PEM files below a directory. Throws if OpenSSL or
// the disk refuses. Not thread-safe.
class CertificateAuthority {
 public:
  explicit CertificateAuthority(std::filesystem::path directory, const std::string& name = "authority");
  ~CertificateAuthority();

  struct Subject {
    std::string name = "peer";  // of the files
    std::string alternative_names = "DNS:localhost,IP:127.0.0.1";
    absl::Duration valid_for = absl::Hours(1);  // from two hours ago until then; negative: it has expired
  };
  // Replaces what lies under the same name, by renaming.
  TlsFiles Issue(const Subject& subject);
  // With which one can check, but not show oneself.
  TlsFiles AuthorityOnly() const;

 private:
  struct Free {
    void operator()(evp_pkey_st* key) const;
    void operator()(x509_st* certificate) const;
  };
  using Key = std::unique_ptr<evp_pkey_st, Free>;
  using Certificate = std::unique_ptr<x509_st, Free>;
  Certificate Sign(const Key& key, const Subject& subject);

  const std::filesystem::path directory_;
  const std::string name_;
  Key key_;
  Certificate certificate_;
  long serial_ = 0;
};

// What makes a program show and ask for certificates.
inline std::vector<std::string> TlsFlags(const TlsFiles& files) {
  return {"--tls-cert", files.certificate, "--tls-key", files.private_key, "--tls-ca", files.authority};
}

}  // namespace millrace
