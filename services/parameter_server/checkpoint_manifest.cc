#include "services/parameter_server/checkpoint_manifest.h"

#include <array>
#include <bit>
#include <span>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"
#include "common/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/message_differencer.h"
#include "nlohmann/json.hpp"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormatName[] = "millrace-checkpoint";

Json ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  // Fails only for messages with Any fields or invalid UTF-8; ours have neither.
  (void)google::protobuf::util::MessageToJsonString(message, &text, options);
  return Json::parse(text, nullptr, false);
}

Json ToJson(const CheckpointFile& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
}

absl::Status Malformed(absl::string_view field) {
  return absl::DataLossError(absl::StrCat("manifest.json: ", field, " is missing or malformed"));
}

absl::Status FromJson(const Json& json, const char* field, google::protobuf::Message* message) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_object()) return Malformed(field);
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  if (!google::protobuf::util::JsonStringToMessage(found->dump(), message, options).ok()) return Malformed(field);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> GetNumber(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number_unsigned()) return Malformed(field);
  return found->get<uint64_t>();
}

absl::StatusOr<std::string> GetString(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_string()) return Malformed(field);
  return found->get<std::string>();
}

absl::StatusOr<std::string> GetDigest(const Json& json, const char* field) {
  MILLRACE_ASSIGN_OR_RETURN(std::string digest, GetString(json, field));
  bool good = digest.size() == 64;
  for (const char c : digest) good = good && absl::ascii_isxdigit(c) && !absl::ascii_isupper(c);
  if (!good) return Malformed(field);
  return digest;
}

absl::StatusOr<CheckpointFile> GetFile(const Json& json, absl::string_view field) {
  if (!json.is_object()) return Malformed(field);
  CheckpointFile file;
  MILLRACE_ASSIGN_OR_RETURN(file.name, GetString(json, "name"));
  if (file.name.empty() || file.name[0] == '.' || file.name.find('/') != std::string::npos) return Malformed("name");
  MILLRACE_ASSIGN_OR_RETURN(file.bytes, GetNumber(json, "bytes"));
  MILLRACE_ASSIGN_OR_RETURN(file.sha256, GetDigest(json, "sha256"));
  return file;
}

}  // namespace

std::string CheckpointManifestToJson(const CheckpointManifest& manifest) {
  Json files = Json::array(), validation = Json::array();
  for (const CheckpointFile& file : manifest.files) files.push_back(ToJson(file));
  for (const v1::Evaluation& evaluation : manifest.validation) validation.push_back(ToJson(evaluation));
  Json json = {{"format", kFormatName},
               {"format_version", kCheckpointFormat},
               {"version", manifest.version},
               {"epoch", EpochOf(manifest.plan, manifest.version)},
               {"weights_sha256", manifest.weights_sha256},
               {"optimizer_sha256", manifest.optimizer_sha256},
               {"files", files},
               {"fingerprint",
                {{"dataset", manifest.plan.dataset().fingerprint()},
                 {"torch_version", manifest.fingerprint.torch_version},
                 {"cpu_capability", manifest.fingerprint.cpu_capability},
                 {"threads", manifest.fingerprint.threads},
                 {"device", manifest.fingerprint.device}}},
               {"plan", ToJson(manifest.plan)},
               {"validation", validation}};
  if (manifest.slot_checksums.has_value()) json["slot_checksums"] = ToJson(*manifest.slot_checksums);
  if (manifest.visits.has_value()) json["visits"] = ToJson(*manifest.visits);
  return json.dump(2) + "\n";
}

absl::StatusOr<CheckpointManifest> CheckpointManifestFromJson(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return absl::DataLossError("manifest.json: not a JSON object");
  MILLRACE_ASSIGN_OR_RETURN(const std::string format, GetString(json, "format"));
  if (format != kFormatName) return Malformed("format");
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t format_version, GetNumber(json, "format_version"));
  if (format_version != kCheckpointFormat) {
    return absl::UnimplementedError(
        absl::StrCat("manifest.json: format_version ", format_version, "; this build reads ", kCheckpointFormat));
  }
  CheckpointManifest manifest;
  MILLRACE_ASSIGN_OR_RETURN(manifest.version, GetNumber(json, "version"));
  MILLRACE_RETURN_IF_ERROR(FromJson(json, "plan", &manifest.plan));
  if (manifest.plan.steps_per_epoch() == 0 || manifest.version == 0) return Malformed("plan");
  MILLRACE_ASSIGN_OR_RETURN(manifest.weights_sha256, GetDigest(json, "weights_sha256"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.optimizer_sha256, GetDigest(json, "optimizer_sha256"));
  const auto fingerprint = json.find("fingerprint");
  if (fingerprint == json.end() || !fingerprint->is_object()) return Malformed("fingerprint");
  MILLRACE_ASSIGN_OR_RETURN(manifest.fingerprint.torch_version, GetString(*fingerprint, "torch_version"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.fingerprint.cpu_capability, GetString(*fingerprint, "cpu_capability"));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t threads, GetNumber(*fingerprint, "threads"));
  manifest.fingerprint.threads = static_cast<uint32_t>(threads);
  if (fingerprint->contains("device")) {  // else from before there was a choice
    MILLRACE_ASSIGN_OR_RETURN(manifest.fingerprint.device, GetString(*fingerprint, "device"));
  }
  const auto files = json.find("files");
  if (files == json.end() || !files->is_array() || files->empty()) return Malformed("files");
  for (const Json& entry : *files) {
    MILLRACE_ASSIGN_OR_RETURN(CheckpointFile file, GetFile(entry, "files"));
    manifest.files.push_back(std::move(file));
  }
  if (const auto checksums = json.find("slot_checksums"); checksums != json.end()) {
    MILLRACE_ASSIGN_OR_RETURN(manifest.slot_checksums, GetFile(*checksums, "slot_checksums"));
  }
  const auto validation = json.find("validation");
  if (validation == json.end() || !validation->is_array()) return Malformed("validation");
  for (const Json& entry : *validation) {
    MILLRACE_RETURN_IF_ERROR(FromJson({{"validation", entry}}, "validation", &manifest.validation.emplace_back()));
  }
  if (json.contains("visits")) {
    MILLRACE_RETURN_IF_ERROR(FromJson(json, "visits", &manifest.visits.emplace()));
  }
  return manifest;
}

std::string OptimizerSha256(const OptimizerState& state) {
  static_assert(std::endian::native == std::endian::little);
  Sha256 digest;
  const std::array<uint64_t, 1> step = {state.step};
  digest.Update(std::as_bytes(std::span(step)));
  for (const OptimizerState::Tensor& tensor : state.tensors) {
    digest.Update(std::string_view(tensor.name.c_str(), tensor.name.size() + 1));
    digest.Update(std::as_bytes(std::span(tensor.values)));
  }
  return digest.FinishHex();
}

absl::Status CheckSameJob(const CheckpointManifest& saved, const v1::JobPlan& plan) {
  if (saved.plan.dataset().fingerprint() != plan.dataset().fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint was trained on another dataset (", saved.plan.dataset().name(), " ",
                     saved.plan.dataset().fingerprint().substr(0, 12), ") than the data service has (",
                     plan.dataset().name(), " ", plan.dataset().fingerprint().substr(0, 12), ")"));
  }
  v1::JobPlan before, now;
  for (const auto& [from, to] : {std::pair(&saved.plan, &before), std::pair(&plan, &now)}) {
    *to->mutable_spec() = from->spec();
    *to->mutable_network() = from->network();
    // What may change when a job goes on: what has no say in a step that was made already.
    to->mutable_spec()->clear_epochs();
    to->mutable_spec()->clear_checkpoint_steps();
    to->mutable_spec()->clear_best_by();
    to->mutable_spec()->clear_early_stopping();
    to->mutable_spec()->clear_publish_best();
    to->mutable_spec()->clear_asynchrony();
    // Where the module's file lies does not matter; what is in it does (network.torchscript_sha256).
    to->mutable_spec()->clear_torchscript_path();
    to->mutable_network()->clear_torchscript_path();
    to->set_parameter_count(from->parameter_count());
  }
  google::protobuf::util::MessageDifferencer differencer;
  std::string difference;
  differencer.ReportDifferencesToString(&difference);
  if (!differencer.Compare(before, now)) {
    difference = absl::StrReplaceAll(absl::StripAsciiWhitespace(difference), {{"\n", "; "}});
    return absl::FailedPreconditionError(absl::StrCat("the checkpoint is of another job: ", difference));
  }
  const v1::LearningRateSchedule& schedule = plan.spec().schedule();
  if (saved.plan.total_steps() != plan.total_steps() && DependsOnTotalSteps(schedule)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint is of another job: its schedule, ", v1::LearningRateSchedule::Kind_Name(schedule.kind()),
        ", was laid out over ", saved.plan.spec().epochs(), " epochs, so that epochs ", plan.spec().epochs(),
        " would have had other rates from the start"));
  }
  if (saved.version > plan.total_steps()) {
    return absl::FailedPreconditionError(absl::StrCat("the checkpoint is at epoch ", EpochOf(plan, saved.version),
                                                      " already; epochs ", plan.spec().epochs(), " is less"));
  }
  return absl::OkStatus();
}

}  // namespace millrace
