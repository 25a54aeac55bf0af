#include "tests/testing/certificates.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <stdexcept>
#include <utility>

#include "tests/testing/pem.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr long kHour = 3600;

void Check(bool ok, const char* what) {
  if (!ok) throw std::runtime_error(what);
}

void AddExtension(X509* certificate, X509* issuer, int which, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, which, value.c_str());
  Check(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1, "extension");
  X509_EXTENSION_free(extension);
}

}  // namespace

void CertificateAuthority::Free::operator()(evp_pkey_st* key) const { EVP_PKEY_free(key); }
void CertificateAuthority::Free::operator()(x509_st* certificate) const { X509_free(certificate); }

CertificateAuthority::CertificateAuthority(fs::path directory, const std::string& name)
    : directory_(std::move(directory)), name_(name), key_(EVP_EC_gen("P-256")) {
  fs::create_directories(directory_);
  certificate_ = Sign(key_, {.name = name, .alternative_names = "", .valid_for = absl::Hours(2)});
  WritePem(directory_ / (name_ + ".pem"), [&](BIO* bio) { return PEM_write_bio_X509(bio, certificate_.get()); });
}

CertificateAuthority::~CertificateAuthority() = default;

CertificateAuthority::Certificate CertificateAuthority::Sign(const Key& key, const Subject& subject) {
  Certificate certificate(X509_new());
  X509* const issuer = certificate_ == nullptr ? certificate.get() : certificate_.get();
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial_);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -2 * kHour);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), absl::ToInt64Seconds(subject.valid_for));
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(subject.name.c_str()), -1, -1, 0);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer));
  X509_set_pubkey(certificate.get(), key.get());
  AddExtension(certificate.get(), issuer, NID_basic_constraints,
               certificate_ == nullptr ? "critical,CA:TRUE" : "CA:FALSE");
  if (!subject.alternative_names.empty()) {
    AddExtension(certificate.get(), issuer, NID_subject_alt_name, subject.alternative_names);
  }
  Check(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0, "sign");
  return certificate;
}

TlsFiles CertificateAuthority::Issue(const Subject& subject) {
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate = Sign(key, subject);
  TlsFiles files = AuthorityOnly();
  files.certificate = directory_ / (subject.name + ".pem");
  files.private_key = directory_ / (subject.name + ".key");
  WritePem(files.private_key,
           [&](BIO* bio) { return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
  WritePem(files.certificate, [&](BIO* bio) { return PEM_write_bio_X509(bio, certificate.get()); });
  return files;
}

TlsFiles CertificateAuthority::AuthorityOnly() const { return {.authority = directory_ / (name_ + ".pem")}; }

}  // namespace millrace
