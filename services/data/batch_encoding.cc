#include "services/data/batch_encoding.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <span>

#include "common/hashing.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/slice.h"

namespace millrace {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

uint8_t* WriteBytesHeader(int field, uint64_t size, uint8_t* out) {
  out = WireFormatLite::WriteTagToArray(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, out);
  return CodedOutputStream::WriteVarint64ToArray(size, out);
}

}  // namespace

grpc::ByteBuffer EncodeBatch(const BatchKey& key, const BatchSamples& samples, const Samples& source,
                             const Augmenter* augmenter) {
  const uint64_t count = samples.indices.size();
  const uint64_t image_bytes = source.image_bytes();

  // Everything up to the first image, and up to the first label: written aside to learn how long it is.
  std::array<uint8_t, kBatchOverheadBytes> head;
  uint8_t* end = head.data();
  end = WireFormatLite::WriteEnumToArray(v1::Batch::kSplitFieldNumber, key.split, end);
  end = WireFormatLite::WriteUInt64ToArray(v1::Batch::kEpochFieldNumber, key.epoch, end);
  end = WireFormatLite::WriteUInt64ToArray(v1::Batch::kStepFieldNumber, key.step, end);
  end = WireFormatLite::WriteUInt32ToArray(v1::Batch::kSlotFieldNumber, key.slot, end);
  end = WireFormatLite::WriteUInt64ToArray(v1::Batch::kStepSamplesFieldNumber, samples.step_samples, end);
  end = WireFormatLite::WriteUInt32ToArray(v1::Batch::kSamplesFieldNumber, static_cast<uint32_t>(count), end);
  end = WriteBytesHeader(v1::Batch::kImagesFieldNumber, count * image_bytes, end);
  const auto head_bytes = static_cast<size_t>(end - head.data());
  std::array<uint8_t, 16> labels_head;
  const auto labels_head_bytes = static_cast<size_t>(
      WriteBytesHeader(v1::Batch::kLabelsFieldNumber, count, labels_head.data()) - labels_head.data());
  constexpr size_t kFixedBytes = 2 * (1 + sizeof(uint64_t));  // checksum and visits

  grpc::Slice slice(head_bytes + count * image_bytes + labels_head_bytes + count + kFixedBytes);
  uint8_t* out = const_cast<uint8_t*>(slice.begin());  // ours alone until it is put into a buffer
  out = std::copy_n(head.data(), head_bytes, out);
  const std::span images(out, count * image_bytes);
  for (const uint64_t index : samples.indices) {
    source.CopyImage(index, {out, image_bytes});
    out += image_bytes;
  }
  if (augmenter != nullptr && key.split == v1::SPLIT_TRAIN) {
    EpochAugmenter at_work(*augmenter, key.epoch);
    for (uint64_t i = 0; i < count; ++i) {
      at_work.Distort(samples.indices[i], images.subspan(i * image_bytes, image_bytes));
    }
  }
  out = std::copy_n(labels_head.data(), labels_head_bytes, out);
  const std::span labels(out, count);
  for (const uint64_t index : samples.indices) *out++ = source.label(index);

  Checksum checksum;
  checksum.Update(std::as_bytes(images));
  checksum.Update(std::as_bytes(labels));
  out = WireFormatLite::WriteFixed64ToArray(v1::Batch::kChecksumFieldNumber, checksum.Value(), out);
  out = WireFormatLite::WriteFixed64ToArray(v1::Batch::kVisitsFieldNumber, samples.visits, out);
  assert(out == slice.end());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace millrace
