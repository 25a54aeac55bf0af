#include "services/model/version_mirror.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/model_name.h"
#include "common/signing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr int kPieceAttempts = 5;  // in a row without a byte
constexpr absl::Duration kFetchRetryMax = absl::Minutes(1);

// The source may be back in a moment.
bool IsAway(const absl::Status& status) { return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status); }

std::span<const std::byte> BytesOf(const std::string& data) { return std::as_bytes(std::span(data)); }

}  // namespace

VersionMirror::VersionMirror(Options options, Metrics& metrics, const Clock& clock)
    : options_(std::move(options)),
      clock_(clock),
      stub_(v1::VersionSource::NewStub(MakeChannel(options_.source, options_.credentials))),
      up_(metrics.Gauge("millrace_model_source_up", "1 if the source of versions answered when last asked.")),
      fetched_(metrics.Counter("millrace_model_source_fetches_total", "Versions fetched from the source, by result.",
                               {{"result", "fetched"}})),
      failed_(metrics.Counter("millrace_model_source_fetches_total", "Versions fetched from the source, by result.",
                              {{"result", "failed"}})),
      bytes_(metrics.Counter("millrace_model_source_bytes_total", "Bytes of versions received from the source.")) {}

VersionMirror::~VersionMirror() { Stop(); }

void VersionMirror::Start() {
  thread_ = std::thread([this] { Run(); });
}

void VersionMirror::Stop() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status VersionMirror::status() const {
  MutexLock lock(&mutex_);
  return status_;
}

void VersionMirror::Run() {
  while (PollOnce() ? Sleep(absl::ZeroDuration()) : Sleep(options_.poll_interval)) {
  }
}

bool VersionMirror::PollOnce() {
  const absl::StatusOr<v1::ListExportedVersionsResponse> listing = List();
  up_.Set(listing.ok() ? 1 : 0);
  if (!listing.ok()) {
    Note(listing.status());
    return false;
  }
  std::vector<MirroredVersion> wanted;
  std::map<uint64_t, absl::Time> retry_at;
  for (const v1::ExportedVersion& version : listing->versions()) {
    wanted.push_back({version.version(), version.manifest_sha256(), version.signature()});
    const auto failure = failures_.find(version.version());
    if (failure != failures_.end()) retry_at[version.version()] = failure->second.retry_at;
  }
  std::erase_if(failures_, [&](const auto& failure) { return !retry_at.contains(failure.first); });

  const std::string& model = listing->model();
  const MirrorPlan plan = PlanMirror(wanted, Local(model), Pins(), retry_at, clock_.Now());
  for (uint64_t version : plan.remove) {
    const absl::Status removed = RemoveTree(options_.repository / model / absl::StrCat(version));
    if (!removed.ok()) LogWarning("an old version stays", {{"version", version}, {"error", removed}});
  }
  if (plan.fetch.has_value()) FetchNext(model, *plan.fetch);
  Note(failures_.empty() ? absl::OkStatus() : failures_.rbegin()->second.status);
  return plan.fetch.has_value();
}

std::vector<uint64_t> VersionMirror::Pins() const { return options_.pins ? options_.pins() : std::vector<uint64_t>(); }

void VersionMirror::FetchNext(const std::string& model, const MirroredVersion& version) {
  const absl::Status fetched = Fetch(model, version);
  if (fetched.ok()) {
    fetched_.Increment();
    failures_.erase(version.version);
    LogInfo("fetched a version", {{"model", model}, {"version", version.version}, {"source", options_.source}});
    return;
  }
  failed_.Increment();
  const Failure first{.status = {}, .retry_at = {}, .backoff = Backoff(options_.poll_interval, kFetchRetryMax)};
  Failure& failure = failures_.try_emplace(version.version, first).first->second;
  failure.status = fetched;
  failure.retry_at = clock_.Now() + failure.backoff.Next();
}

// Logs changes only: an outage of an hour is two lines.
void VersionMirror::Note(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (stop_ || status == status_) return;
  if (status.ok()) {
    LogInfo("following the source of versions", {{"source", options_.source}});
  } else {
    LogWarning("cannot follow the source of versions; what is here goes on serving",
               {{"source", options_.source}, {"error", status}});
  }
  status_ = status;
}

absl::StatusOr<v1::ListExportedVersionsResponse> VersionMirror::List() {
  v1::ListExportedVersionsRequest request;
  request.set_newest(options_.keep);
  for (const uint64_t pin : Pins()) {
    if (request.besides_size() < static_cast<int>(kExportedVersionsMax)) request.add_besides(pin);
  }
  MILLRACE_ASSIGN_OR_RETURN(v1::ListExportedVersionsResponse listing,
                            Call(&v1::VersionSource::Stub::ListExportedVersions, request));
  MILLRACE_RETURN_IF_ERROR(CheckModelName("the source's model", listing.model()));
  return listing;
}

std::vector<MirroredVersion> VersionMirror::Local(const std::string& model) const {
  std::vector<MirroredVersion> local;
  for (uint64_t version : NumberedEntries(options_.repository / model)) {
    const fs::path directory = options_.repository / model / absl::StrCat(version);
    const auto manifest = ReadFile(directory / kManifestFile, kManifestBytesMax);
    local.push_back({.version = version,
                     .manifest_sha256 = manifest.ok() ? Sha256Hex(*manifest) : "",
                     .signature = ReadFile(directory / kSignatureFile, kSignatureBytesMax).value_or("")});
  }
  return local;
}

absl::Status VersionMirror::Fetch(const std::string& model, const MirroredVersion& version) {
  const fs::path parent = options_.repository / model;
  const fs::path temporary = parent / absl::StrCat(".", version.version, ".fetch");
  const fs::path final_name = parent / absl::StrCat(version.version);
  MILLRACE_RETURN_IF_ERROR(RemoveTree(temporary));  // of an earlier life
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(temporary));
  const absl::Status status = [&]() -> absl::Status {
    MILLRACE_ASSIGN_OR_RETURN(const ServableManifest manifest, FetchManifest(model, version, temporary));
    for (const ManifestFile& file : manifest.files) {
      MILLRACE_RETURN_IF_ERROR(FetchFile(version.version, file, temporary));
    }
    if (!version.signature.empty()) {
      MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(temporary / kSignatureFile, version.signature));
    }
    MILLRACE_RETURN_IF_ERROR(SyncDirectory(temporary));
    MILLRACE_RETURN_IF_ERROR(RemoveTree(final_name));  // another version of this number
    return RenameDurably(temporary, final_name);
  }();
  if (!status.ok()) RemoveTree(temporary).IgnoreError();  // the first error is the one to report
  return status;
}

absl::StatusOr<ServableManifest> VersionMirror::FetchManifest(const std::string& model, const MirroredVersion& version,
                                                              const fs::path& directory) {
  std::string json;
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string piece, ReadPiece(version.version, kManifestFile, json.size()));
    if (piece.empty()) break;
    if (json.size() + piece.size() > kManifestBytesMax) {
      return absl::OutOfRangeError(absl::StrCat("the manifest of version ", version.version, " is over the limit of ",
                                                kManifestBytesMax, " bytes"));
    }
    json += piece;
  }
  if (Sha256Hex(json) != version.manifest_sha256) {
    return absl::AbortedError(absl::StrCat("version ", version.version, " was replaced while it was fetched"));
  }
  MILLRACE_ASSIGN_OR_RETURN(ServableManifest manifest, ManifestFromJson(json));
  if (manifest.model != model || manifest.version != version.version) {
    return absl::DataLossError(absl::StrCat("version ", version.version, " of ", model, " says that it is version ",
                                            manifest.version, " of ", manifest.model));
  }
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(directory / kManifestFile, json));
  return manifest;
}

absl::Status VersionMirror::FetchFile(uint64_t version, const ManifestFile& file, const fs::path& directory) {
  const auto torn = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(file.name, " of version ", version, " ", what));
  };
  MILLRACE_ASSIGN_OR_RETURN(auto writer, RealFileSystem().Create(directory / file.name));
  Sha256 digest;
  for (uint64_t offset = 0; offset < file.bytes;) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string piece, ReadPiece(version, file.name, offset));
    if (piece.empty()) return torn(absl::StrCat("has ", offset, " of ", file.bytes, " bytes"));
    offset += piece.size();
    if (offset > file.bytes) return torn(absl::StrCat("has more than ", file.bytes, " bytes"));
    digest.Update(BytesOf(piece));
    MILLRACE_RETURN_IF_ERROR(writer->Append(BytesOf(piece)));
    bytes_.Increment(static_cast<double>(piece.size()));
  }
  if (digest.FinishHex() != file.sha256) return torn("has another SHA-256 than its manifest says");
  MILLRACE_RETURN_IF_ERROR(writer->Sync());
  return writer->Close();
}

absl::StatusOr<std::string> VersionMirror::ReadPiece(uint64_t version, const std::string& file, uint64_t offset) {
  v1::ReadExportedFileRequest request;
  request.set_version(version);
  request.set_file(file);
  request.set_offset(offset);
  Backoff backoff;
  for (int attempt = 1;; ++attempt) {
    absl::StatusOr<v1::ReadExportedFileResponse> response = Call(&v1::VersionSource::Stub::ReadExportedFile, request);
    if (response.ok()) return std::move(*response->mutable_data());
    if (!IsAway(response.status()) || attempt == kPieceAttempts) return response.status();
    if (!Sleep(backoff.Next())) return absl::CancelledError("the end");
  }
}

template <typename Request, typename Response>
absl::StatusOr<Response> VersionMirror::Call(grpc::Status (v1::VersionSource::Stub::*method)(grpc::ClientContext*,
                                                                                             const Request&, Response*),
                                             const Request& request) {
  grpc::ClientContext context;
  SetDeadline(context, kCallTimeout);
  {
    MutexLock lock(&mutex_);
    if (stop_) return absl::CancelledError("the end");
    call_ = &context;
  }
  Response response;
  const absl::Status status = FromGrpcStatus((stub_.get()->*method)(&context, request, &response));
  MutexLock lock(&mutex_);
  call_ = nullptr;
  if (!status.ok()) return status;
  return response;
}

bool VersionMirror::Sleep(absl::Duration time) {
  const absl::Time until = absl::Now() + time;
  MutexLock lock(&mutex_);
  while (!stop_ && absl::Now() < until) changed_.WaitWithTimeout(&mutex_, until - absl::Now());
  return !stop_;
}

}  // namespace millrace
