#include "services/worker/weights_inbox.h"

#include "absl/strings/str_cat.h"

namespace millrace {

void WeightsInbox::StreamOpened() {
  if (arriving()) received_ = false;  // the shard may not have made the rest of it yet
  incoming_offset_ = 0;
}

absl::Status WeightsInbox::Receive(const WeightsChunkView& chunk) {
  const uint64_t offset = chunk.header.offset, count = chunk.values.size() / sizeof(float);
  const bool begins = offset == 0;
  const bool goes_on = offset > 0 && offset == incoming_offset_ && chunk.header.version == newest_version_;
  if (!begins && !goes_on) {
    return absl::InvalidArgumentError(absl::StrCat("piece at ", offset, " of version ", chunk.header.version, " after ",
                                                   incoming_offset_, " of version ", newest_version_));
  }
  if (count == 0 || count > range_.size() - offset) {
    return absl::InvalidArgumentError(
        absl::StrCat("piece of ", count, " values at ", offset, " of a range of ", range_.size()));
  }
  version_.reset();  // the range holds a mixture until the last piece is in
  if (begins) incoming_spoiled_ = false;
  newest_version_ = chunk.header.version;
  received_ = true;
  CopyFloats(chunk.values, range_.subspan(offset, count));
  incoming_offset_ = offset + count;
  if (incoming_offset_ == range_.size()) {
    if (!incoming_spoiled_) version_ = newest_version_;
    incoming_offset_ = 0;
  }
  return absl::OkStatus();
}

std::span<float> WeightsInbox::BeginFetch() {
  version_.reset();
  incoming_spoiled_ = true;
  return range_;
}

}  // namespace millrace
