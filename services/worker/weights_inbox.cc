#include "services/worker/weights_inbox.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {

void WeightsInbox::StreamOpened() {
  if (arriving()) received_ = false;  // the shard may not have made the rest of it yet
  incoming_offset_ = 0;
}

absl::Status WeightsInbox::Receive(const WeightsChunkView& chunk) {
  const uint64_t offset = chunk.header.offset;
  const bool begins = offset == 0;
  const bool goes_on = offset > 0 && offset == incoming_offset_ && chunk.header.version == newest_version_;
  if (!begins && !goes_on) {
    return absl::InvalidArgumentError(absl::StrCat("piece at ", offset, " of version ", chunk.header.version, " after ",
                                                   incoming_offset_, " of version ", newest_version_));
  }
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t count, Write(offset, chunk.values));
  if (begins) incoming_spoiled_ = false;
  newest_version_ = chunk.header.version;
  received_ = true;
  incoming_offset_ = offset + count;
  if (incoming_offset_ == range_.size()) {
    if (!incoming_spoiled_) version_ = newest_version_;
    incoming_offset_ = 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> WeightsInbox::Write(uint64_t offset, const ByteRope& values) {
  const std::optional<uint64_t> count = EncodedCount(format_, values.size());
  if (!count.has_value() || *count == 0 || *count > range_.size() - offset) {
    return absl::InvalidArgumentError(absl::StrCat("piece of ", values.size(), " bytes at ", offset, " of a range of ",
                                                   range_.size(), " numbers, the rest of which take ",
                                                   EncodedBytes(format_, range_.size() - offset), " bytes"));
  }
  version_.reset();  // the range holds a mixture until the last piece is in
  Decode(format_, values, range_.subspan(offset, *count));
  return *count;
}

void WeightsInbox::BeginFetch() {
  version_.reset();
  incoming_spoiled_ = true;
  fetched_ = 0;
}

absl::Status WeightsInbox::ReceiveFetched(uint64_t offset, const ByteRope& values) {
  if (offset != fetched_) {
    return absl::InvalidArgumentError(absl::StrCat("fetched piece at ", offset, " after ", fetched_));
  }
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t count, Write(offset, values));
  fetched_ += count;
  return absl::OkStatus();
}

absl::Status WeightsInbox::Fetched(uint64_t version) {
  if (fetched_ != range_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("only ", fetched_, " of ", range_.size(), " weights came"));
  }
  version_ = version;
  return absl::OkStatus();
}

}  // namespace millrace
