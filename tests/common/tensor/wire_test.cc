#include "common/tensor/wire.h"

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using absl::StatusCode;

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// A message as it may arrive: cut anywhere, with empty slices between.
grpc::ByteBuffer Slice(const std::string& bytes, const std::vector<size_t>& sizes) {
  std::vector<grpc::Slice> slices;
  size_t begin = 0;
  for (size_t i = 0; begin < bytes.size(); ++i) {
    const size_t size = i < sizes.size() ? std::min(sizes[i], bytes.size() - begin) : bytes.size() - begin;
    slices.emplace_back(bytes.data() + begin, size);
    begin += size;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// A slice owns its memory exactly, so that the address sanitizer sees a read beyond it.
grpc::ByteBuffer Whole(const std::string& bytes) { return Slice(bytes, {}); }

std::string BytesOf(std::span<const float> values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

std::vector<float> FloatsOf(const ByteRope& values) {
  std::vector<float> out(values.size() / sizeof(float));
  CopyFloats(values, out);
  return out;
}

rc::Gen<std::vector<float>> Floats() {
  return rc::gen::container<std::vector<float>>(
      rc::gen::map(rc::gen::arbitrary<int>(), [](int i) { return i / 7.0f; }));
}
rc::Gen<std::vector<size_t>> Cuts() { return rc::gen::container<std::vector<size_t>>(rc::gen::inRange<size_t>(0, 9)); }

RC_GTEST_PROP(WireTest, GradientHasTheStockEncoding, ()) {
  const auto values = *Floats();
  const GradientChunkHeader header{*rc::gen::arbitrary<uint64_t>(), *rc::gen::arbitrary<uint32_t>(),
                                   *rc::gen::arbitrary<uint32_t>(), *rc::gen::arbitrary<uint64_t>(),
                                   *rc::gen::arbitrary<uint64_t>()};
  v1::ExchangeRequest stock;
  stock.mutable_gradient()->set_step(header.step);
  stock.mutable_gradient()->set_slot_begin(header.slot_begin);
  stock.mutable_gradient()->set_slot_end(header.slot_end);
  stock.mutable_gradient()->set_samples(header.samples);
  stock.mutable_gradient()->set_offset(header.offset);
  stock.mutable_gradient()->set_values(BytesOf(values));
  const std::string bytes = stock.SerializeAsString();
  RC_ASSERT(Flatten(EncodeGradient(header, ToWire({}, values, nullptr))) == bytes);

  MessageView view;
  RC_ASSERT(view.Reset(Slice(bytes, *Cuts())).ok());
  const auto request = DecodeExchangeRequest(view);
  RC_ASSERT(request.ok());
  const auto& gradient = std::get<GradientChunkView>(*request);
  RC_ASSERT(gradient.header.step == header.step);
  RC_ASSERT(gradient.header.slot_begin == header.slot_begin);
  RC_ASSERT(gradient.header.slot_end == header.slot_end);
  RC_ASSERT(gradient.header.samples == header.samples);
  RC_ASSERT(gradient.header.offset == header.offset);
  RC_ASSERT(FloatsOf(gradient.values) == values);
}

RC_GTEST_PROP(WireTest, WeightsHaveTheStockEncoding, ()) {
  const auto values = *Floats();
  const WeightsChunkHeader header{*rc::gen::arbitrary<uint64_t>(), *rc::gen::arbitrary<uint64_t>()};
  v1::ExchangeResponse stock;
  stock.mutable_weights()->set_version(header.version);
  stock.mutable_weights()->set_offset(header.offset);
  stock.mutable_weights()->set_values(BytesOf(values));
  RC_ASSERT(Flatten(EncodeWeights(header, ToWire({}, values, nullptr))) == stock.SerializeAsString());
  RC_ASSERT(Flatten(EncodeWeightsChunk(header, ToWire({}, values, nullptr))) == stock.weights().SerializeAsString());

  const auto cuts = *Cuts();
  MessageView view;
  RC_ASSERT(view.Reset(Slice(stock.SerializeAsString(), cuts)).ok());
  const auto response = DecodeExchangeResponse(view);
  RC_ASSERT(response.ok());
  const auto& weights = std::get<WeightsChunkView>(*response);
  RC_ASSERT(weights.header.version == header.version);
  RC_ASSERT(weights.header.offset == header.offset);
  RC_ASSERT(FloatsOf(weights.values) == values);
}

RC_GTEST_PROP(WireTest, SumsReadEveryFloatAcrossCuts, ()) {
  const auto values = *Floats();
  const std::string bytes = BytesOf(values);
  MessageView view;
  RC_ASSERT(view.Reset(Slice(bytes, *Cuts())).ok());
  std::vector<float> sum(values.size()), other(values.size()), out(values.size());
  for (size_t i = 0; i < values.size(); ++i) sum[i] = other[i] = 0.1f * static_cast<float>(i);
  AddFloats(view.bytes(), sum);
  SumFloats(view.bytes(), other, out);
  for (size_t i = 0; i < values.size(); ++i) {
    RC_ASSERT(sum[i] == other[i] + values[i]);
    RC_ASSERT(out[i] == sum[i]);
  }
}

// Whatever a peer sends: the stock parser and ours accept and read the same, and neither crashes.
void ExpectSameAsStock(const std::string& bytes, const std::vector<size_t>& cuts) {
  v1::ExchangeRequest stock;
  const bool stock_ok = stock.ParseFromString(bytes);
  MessageView view;
  RC_ASSERT(view.Reset(Slice(bytes, cuts)).ok());
  const auto request = DecodeExchangeRequest(view);
  if (!request.ok()) {
    RC_ASSERT(request.status().code() == StatusCode::kInvalidArgument);
    // The only differences: values that are no whole floats, and groups, which the stock parser skips.
    const bool odd_values = stock.gradient().values().size() % sizeof(float) != 0;
    const bool may_have_group = std::any_of(bytes.begin(), bytes.end(), [](char c) { return (c & 7) == 3; });
    RC_ASSERT(!stock_ok || odd_values || may_have_group);
    return;
  }
  RC_ASSERT(stock_ok);
  if (const auto* gradient = std::get_if<GradientChunkView>(&*request)) {
    RC_ASSERT(stock.has_gradient());
    RC_ASSERT(stock.gradient().step() == gradient->header.step);
    RC_ASSERT(stock.gradient().slot_begin() == gradient->header.slot_begin);
    RC_ASSERT(stock.gradient().slot_end() == gradient->header.slot_end);
    RC_ASSERT(stock.gradient().samples() == gradient->header.samples);
    RC_ASSERT(stock.gradient().offset() == gradient->header.offset);
    RC_ASSERT(stock.gradient().values() == BytesOf(FloatsOf(gradient->values)));
  } else if (const auto* open = std::get_if<v1::OpenExchange>(&*request)) {
    RC_ASSERT(stock.has_open());
    RC_ASSERT(stock.open().SerializeAsString() == open->SerializeAsString());
  } else {
    RC_ASSERT(stock.message_case() == v1::ExchangeRequest::MESSAGE_NOT_SET);
  }
}

RC_GTEST_PROP(WireTest, DamagedMessagesReadAsTheStockParserReadsThem, ()) {
  v1::ExchangeRequest first, second;
  first.mutable_gradient()->set_step(*rc::gen::arbitrary<uint64_t>());
  first.mutable_gradient()->set_values(std::string(*rc::gen::inRange<size_t>(0, 5) * 4, 'v'));
  if (*rc::gen::arbitrary<bool>()) {
    second.mutable_gradient()->set_offset(*rc::gen::inRange(0, 300));
  } else {
    second.mutable_open()->set_worker("w");
    second.mutable_open()->set_run_id(*rc::gen::arbitrary<uint64_t>());
  }
  // Concatenation is merging, in protobuf.
  std::string bytes = first.SerializeAsString() + second.SerializeAsString();
  const auto damages = *rc::gen::inRange(0, 4);
  for (int i = 0; i < damages && !bytes.empty(); ++i) {
    const auto at = *rc::gen::inRange<size_t>(0, bytes.size());
    if (*rc::gen::arbitrary<bool>()) {
      bytes[at] = static_cast<char>(*rc::gen::inRange(0, 256));
    } else {
      bytes.resize(at);
    }
  }
  ExpectSameAsStock(bytes, *Cuts());
}

RC_GTEST_PROP(WireTest, RandomBytesReadAsTheStockParserReadsThem, ()) {
  ExpectSameAsStock(*rc::gen::container<std::string>(rc::gen::arbitrary<char>()), *Cuts());
}

TEST(WireTest, SmallMessagesRoundTrip) {
  v1::ExchangeRequest request;
  request.mutable_open()->set_worker("worker-0");
  request.mutable_open()->set_run_id(7);
  MessageView view;
  ASSERT_THAT(view.Reset(EncodeMessage(request)), IsOk());
  const auto decoded = DecodeExchangeRequest(view);
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(std::get<v1::OpenExchange>(*decoded).worker(), "worker-0");

  v1::ExchangeResponse response;
  response.mutable_ack()->set_step(812);
  ASSERT_THAT(view.Reset(EncodeMessage(response)), IsOk());
  const auto ack = DecodeExchangeResponse(view);
  ASSERT_THAT(ack, IsOk());
  EXPECT_EQ(std::get<v1::PushAck>(*ack).step(), 812u);

  v1::ExchangeRequest again;
  ASSERT_THAT(view.Reset(Slice(request.SerializeAsString(), {1, 2, 3})), IsOk());
  ASSERT_THAT(DecodeMessage(view, &again), IsOk());
  EXPECT_EQ(again.open().run_id(), 7u);
}

TEST(WireTest, UnknownFieldsAreSkipped) {
  // Field 9 as varint, fixed32, fixed64 and bytes; then nothing that is known.
  const std::string bytes(
      "\x48\x05\x4d"
      "abcd"
      "\x49"
      "abcdefgh"
      "\x4a\x02"
      "xy",
      20);
  MessageView view;
  ASSERT_THAT(view.Reset(Whole(bytes)), IsOk());
  const auto request = DecodeExchangeRequest(view);
  ASSERT_THAT(request, IsOk());
  EXPECT_TRUE(std::holds_alternative<std::monostate>(*request));
}

TEST(WireTest, RefusesMalformedMessages) {
  const std::vector<std::string> malformed = {
      std::string("\x12\x7f", 2),                                       // longer than the message
      std::string("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),  // 2^64 - 1 bytes
      std::string("\x00\x00", 2),                                       // field 0
      std::string("\x0f", 1),                                           // wire type 7
      std::string(11, '\xff'),                                          // endless varint
      std::string("\x12\x02\x32\x05", 4),                               // values longer than their message
      std::string("\x0a\x02\x12\x05", 4),                               // malformed open
  };
  for (const std::string& bytes : malformed) {
    MessageView view;
    ASSERT_THAT(view.Reset(Whole(bytes)), IsOk());
    EXPECT_THAT(DecodeExchangeRequest(view), StatusIs(StatusCode::kInvalidArgument)) << testing::PrintToString(bytes);
  }
  MessageView view;
  EXPECT_THAT(view.Reset(grpc::ByteBuffer()), StatusIs(StatusCode::kInvalidArgument));
}

TEST(WireTest, NarrowValuesTravelInACopyOfTheirOwn) {
  const std::vector<float> values = {1, -2.5f, 1.0f / 3};
  const WireValues wire = ToWire(v1::NUMBER_FORMAT_BFLOAT16, values, nullptr);
  ASSERT_EQ(wire.bytes.size(), 6u);
  EXPECT_NE(wire.owner, nullptr);
  std::vector<float> out(3);
  Decode(v1::NUMBER_FORMAT_BFLOAT16, ByteRope({&wire.bytes, 1}, 0, 6), out);
  EXPECT_THAT(out, testing::ElementsAre(1, -2.5f, testing::FloatNear(1.0f / 3, 1e-3f)));
}

TEST(WireTest, ValuesAreNotCopiedAndTheirOwnerLivesAsLongAsTheMessage) {
  auto owner = std::make_shared<std::vector<float>>(1000, 1.5f);
  const std::weak_ptr<std::vector<float>> watch = owner;
  const float* data = owner->data();
  grpc::ByteBuffer message = EncodeWeights({1, 0}, ToWire({}, *owner, owner));
  owner.reset();
  {
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(message.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(static_cast<const void*>(slices[1].begin()), static_cast<const void*>(data));
    message.Clear();
    EXPECT_FALSE(watch.expired());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(WireTest, ChunkGrid) {
  constexpr uint64_t kElements = 2 * kChunkElements + 1000;
  EXPECT_EQ(ChunkCount(kElements), 3u);
  EXPECT_EQ(ChunkSize(kElements, kChunkElements), kChunkElements);
  EXPECT_EQ(ChunkSize(kElements, 2 * kChunkElements), 1000u);
  EXPECT_EQ(ChunkCount(kChunkElements), 1u);
  EXPECT_EQ(ChunkSize(kChunkElements, 0), kChunkElements);
}

}  // namespace
}  // namespace millrace
