// Whatever bytes a peer sends, cut into slices wherever the transport likes, decoding gives a message or an error, and
// says the same as protobuf's own parser does about whether the bytes are a message.
#include <cstdlib>
#include <vector>

#include "common/tensor/wire.h"

namespace {

// The first byte says how long the slices are, so that the fuzzer also explores where they are cut.
grpc::ByteBuffer Sliced(const uint8_t* data, size_t size, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < size; at += slice_bytes) {
    slices.emplace_back(data + at, std::min(slice_bytes, size - at));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  millrace::MessageView view;
  if (!view.Reset(Sliced(data + 1, size - 1, 1 + data[0] % 64)).ok()) return 0;

  millrace::v1::ExchangeRequest stock;
  const bool parses = stock.ParseFromArray(data + 1, static_cast<int>(size - 1));
  auto request = millrace::DecodeExchangeRequest(view);
  if (request.ok() && !parses) std::abort();
  if (request.ok()) {
    if (auto* gradient = std::get_if<millrace::GradientChunkView>(&*request)) {
      std::vector<float> sum(gradient->values.size() / sizeof(float));
      millrace::AddFloats(gradient->values, sum);
    }
  }
  (void)millrace::DecodeExchangeResponse(view);
  return 0;
}
