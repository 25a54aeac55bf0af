#include "services/cli/checkpoint_records.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kManifestBytesMax = 64 << 20;

absl::StatusOr<SlotChecksums> ReadChecksums(const fs::path& directory, const Json& manifest) {
  if (!manifest.contains("slot_checksums")) {
    return absl::NotFoundError(absl::StrCat("the checkpoint ", directory.string(), " has no slot checksums"));
  }
  const fs::path file = directory / kSlotChecksumsFile;
  const auto damaged = [&](absl::string_view why) {
    return absl::DataLossError(absl::StrCat(file.string(), " is damaged: ", why));
  };
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kSlotChecksumsFileBytesMax));
  if (manifest["slot_checksums"].value("sha256", "") != Sha256Hex(text)) {
    return damaged("its SHA-256 is not the one in manifest.json");
  }
  absl::StatusOr<SlotChecksums> checksums = SlotChecksumsFromText(text);
  if (!checksums.ok()) return damaged(checksums.status().message());
  return checksums;
}

std::optional<CheckpointRecord> ReadRecord(const fs::path& directory, uint64_t version) {
  const absl::StatusOr<std::string> text = ReadFile(directory / "manifest.json", kManifestBytesMax);
  if (!text.ok()) return std::nullopt;
  const Json manifest = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  std::optional<CheckpointRecord> found(std::in_place);
  CheckpointRecord& record = *found;
  record.version = version;
  try {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    if (!google::protobuf::util::JsonStringToMessage(manifest.at("plan").dump(), &record.plan, options).ok()) {
      return std::nullopt;
    }
    const Json& fingerprint = manifest.at("fingerprint");
    record.fingerprint.torch_version = fingerprint.at("torch_version").get<std::string>();
    record.fingerprint.cpu_capability = fingerprint.at("cpu_capability").get<std::string>();
    record.fingerprint.threads = fingerprint.at("threads").get<uint32_t>();
    record.fingerprint.device = fingerprint.value("device", "cpu");  // earlier versions had no choice
    record.checksums = ReadChecksums(directory, manifest);
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
  return found;
}

}  // namespace

std::vector<CheckpointRecord> ReadCheckpointRecords(const fs::path& out) {
  const fs::path root = out / "checkpoints";
  std::vector<uint64_t> versions = NumberedEntries(root);
  std::reverse(versions.begin(), versions.end());
  std::vector<CheckpointRecord> records;
  for (const uint64_t version : versions) {
    if (auto record = ReadRecord(root / std::to_string(version), version)) records.push_back(*std::move(record));
  }
  return records;
}

StepChecksums MergeChecksums(const std::vector<CheckpointRecord>& records) {
  StepChecksums merged;
  for (const CheckpointRecord& record : records) {
    if (!record.checksums.ok()) continue;
    const SlotChecksums& checksums = *record.checksums;
    for (uint64_t step = checksums.first_step; step < checksums.end_step(); ++step) {
      const auto slots = checksums.Of(step);
      merged[step].assign(slots.begin(), slots.end());
    }
  }
  return merged;
}

SlotComparison CompareSlots(const StepChecksums& before, const StepChecksums& after) {
  SlotComparison comparison;
  for (const auto& [step, slots] : before) {
    const auto other = after.find(step);
    if (other == after.end()) continue;
    ++comparison.steps;
    for (uint32_t slot = 0; slot < std::min(slots.size(), other->second.size()); ++slot) {
      ++comparison.slots;
      if (slots[slot] == other->second[slot]) continue;
      ++comparison.differences;
      if (!comparison.first.has_value()) comparison.first = {step, slot, slots[slot], other->second[slot]};
    }
  }
  return comparison;
}

}  // namespace millrace
