#include "services/model/open_inference.h"

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"
#include "tests/services/model/infer_requests.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Message = inference::ModelInferRequest;
using Kind = InferenceRequest::Kind;

const ModelInfo kInfo = FakeInfo("mnist", 7);
const absl::Time kNow = absl::FromUnixSeconds(1000);

absl::StatusOr<OpenInference> Translate(const Message& message, absl::Time deadline = absl::InfiniteFuture()) {
  return ToInference(kInfo, message, kNow, deadline);
}

std::vector<float> FloatsOf(std::span<const uint8_t> bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

// Row r, value v of it: 10 r + v.
InferenceAnswer AnswerFor(const ModelInfo& info, uint32_t rows) {
  InferenceAnswer answer{.values = {},
                         .rows = rows,
                         .batch_rows = rows + 1,
                         .queue = absl::Microseconds(11),
                         .batch_wait = {},
                         .compute = absl::Microseconds(12)};
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint64_t i = 0; i < info.values_per_row(); ++i) answer.values.push_back(10.f * row + i);
  }
  return answer;
}

TEST(OpenInferenceTest, RawBytesAreTakenWhereTheyAre) {
  const Message message = RawInferRequest(3);
  const auto inference = Translate(message);
  ASSERT_THAT(inference, IsOk());
  EXPECT_EQ(inference->request.kind, Kind::kRaw);
  EXPECT_EQ(inference->request.rows, 3u);
  EXPECT_TRUE(inference->raw);
  EXPECT_EQ(static_cast<const void*>(inference->request.input.data()), message.raw_input_contents(0).data());
  EXPECT_EQ(inference->request.input.size(), 18u);
}

TEST(OpenInferenceTest, TypedBytesAndFloatsInEitherForm) {
  const Message bytes = TypedInferRequest(2);
  const auto typed = Translate(bytes);
  ASSERT_THAT(typed, IsOk());
  EXPECT_FALSE(typed->raw);
  EXPECT_THAT(typed->request.input, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));

  const std::vector<float> values = {0, 0.5f, 255, -3, 1e9f, 2};
  Message floats = EmptyInferRequest(1, "FP32");
  floats.mutable_inputs(0)->mutable_contents()->mutable_fp32_contents()->Assign(values.begin(), values.end());
  const auto typed_floats = Translate(floats);
  ASSERT_THAT(typed_floats, IsOk());
  EXPECT_EQ(typed_floats->request.kind, Kind::kFloats);
  EXPECT_EQ(FloatsOf(typed_floats->request.input), values);

  floats.mutable_inputs(0)->clear_contents();
  floats.add_raw_input_contents(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  const auto raw_floats = Translate(floats);
  ASSERT_THAT(raw_floats, IsOk());
  EXPECT_EQ(FloatsOf(raw_floats->request.input), values);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(raw_floats->request.input.data()) % alignof(float), 0u);
}

TEST(OpenInferenceTest, EveryFaultNamesItsTensorAndTheLimit) {
  struct Case {
    const char* message;
    Message request;
    std::function<void(Message&)> break_it;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Case> cases = {
      {"model mnist needs the input INPUT__0", RawInferRequest(), [](Message& m) { m.clear_inputs(); }},
      {"model mnist has no input 'x'; it takes INPUT__0", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_name("x"); }},
      {"input INPUT__0 of model mnist: is given twice", RawInferRequest(),
       [](Message& m) { *m.add_inputs() = m.inputs(0); }},
      {"raw_input_contents holds 2 tensors and inputs holds 1", RawInferRequest(),
       [](Message& m) { m.add_raw_input_contents("x"); }},
      {"input INPUT__0 of model mnist: datatype 'INT64' is not taken; UINT8 or FP32 is", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_datatype("INT64"); }},
      {"shape [1, 1, 2] does not fit [-1, 1, 2, 3]", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->mutable_shape()->RemoveLast(); }},
      {"shape [1, 1, 2, 4] does not fit [-1, 1, 2, 3]", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_shape(3, 4); }},
      {"shape [0, 1, 2, 3] has 0 rows, which must be in [1, 1024]", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_shape(0, 0); }},
      {"has -1 rows", RawInferRequest(), [](Message& m) { m.mutable_inputs(0)->set_shape(0, -1); }},
      {"has 1025 rows", RawInferRequest(), [](Message& m) { m.mutable_inputs(0)->set_shape(0, 1025); }},
      {"input INPUT__0 of model mnist: UINT8 [2, 1, 2, 3] takes 12 bytes, got 6", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_shape(0, 2); }},
      {"FP32 [1, 1, 2, 3] takes 24 bytes, got 6", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_datatype("FP32"); }},
      {"has raw_input_contents and contents", RawInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->mutable_contents()->add_bytes_contents(""); }},
      {"takes 6 elements in uint_contents or as many in raw_input_contents, got 0", RawInferRequest(),
       [](Message& m) { m.clear_raw_input_contents(); }},
      {"takes 6 elements in uint_contents or as many in raw_input_contents, got 7", TypedInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->mutable_contents()->add_uint_contents(1); }},
      {"contents of datatype UINT8 belong in uint_contents alone", TypedInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->mutable_contents()->add_int_contents(1); }},
      {"contents of datatype FP32 belong in fp32_contents alone", TypedInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->set_datatype("FP32"); }},
      {"element 5 is 256, over the limit of 255", TypedInferRequest(),
       [](Message& m) { m.mutable_inputs(0)->mutable_contents()->set_uint_contents(5, 256); }},
      {"element 0 is a NaN or an infinity", EmptyInferRequest(1, "FP32"),
       [&](Message& m) { m.mutable_inputs(0)->mutable_contents()->mutable_fp32_contents()->Resize(6, nan); }},
      {"element 0 is a NaN or an infinity", EmptyInferRequest(1, "FP32"),
       [](Message& m) { m.add_raw_input_contents(std::string("\0\0\x80\x7f", 4) + std::string(20, '\0')); }},
      {"shared memory is not offered", EmptyInferRequest(1, "UINT8"),
       [](Message& m) { (*m.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("r"); }},
      {"model mnist has no output 'y'; it has OUTPUT__0", RawInferRequest(),
       [](Message& m) { m.add_outputs()->set_name("y"); }},
      {"output OUTPUT__0 of model mnist: is asked for twice", RawInferRequest(),
       [](Message& m) {
         m.add_outputs()->set_name("OUTPUT__0");
         m.add_outputs()->set_name("OUTPUT__0");
       }},
      {"parameter deterministic must be a bool", RawInferRequest(),
       [](Message& m) { (*m.mutable_parameters())["deterministic"].set_int64_param(1); }},
      {"parameter timeout must be a number of microseconds", RawInferRequest(),
       [](Message& m) { (*m.mutable_parameters())["timeout"].set_int64_param(-1); }},
  };
  for (const Case& fault : cases) {
    Message message = fault.request;
    fault.break_it(message);
    EXPECT_THAT(Translate(message), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(fault.message)));
  }
}

TEST(OpenInferenceTest, ParametersCountAndUnknownOnesDoNot) {
  Message message = RawInferRequest();
  auto& parameters = *message.mutable_parameters();
  parameters["triton_enable_empty_final_response"].set_bool_param(false);
  parameters["priority"].set_uint64_param(3);
  parameters["timeout"].set_int64_param(0);
  auto inference = Translate(message);
  ASSERT_THAT(inference, IsOk());
  EXPECT_FALSE(inference->request.deterministic);
  EXPECT_EQ(inference->request.deadline, absl::InfiniteFuture());

  parameters["deterministic"].set_bool_param(true);
  parameters["timeout"].set_uint64_param(2'000'000);
  inference = Translate(message);
  ASSERT_THAT(inference, IsOk());
  EXPECT_TRUE(inference->request.deterministic);
  EXPECT_EQ(inference->request.deadline, kNow + absl::Seconds(2));
  EXPECT_EQ(Translate(message, kNow + absl::Seconds(1))->request.deadline, kNow + absl::Seconds(1));
  parameters["timeout"].set_uint64_param(std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(Translate(message)->request.deadline, absl::InfiniteFuture());
}

TEST(OpenInferenceTest, TheAnswerHasTheFormOfTheRequestAndItsProvenance) {
  for (const bool raw : {false, true}) {
    Message message = raw ? RawInferRequest(2) : TypedInferRequest(2);
    message.set_id("a-17");
    const auto inference = Translate(message);
    ASSERT_THAT(inference, IsOk());
    inference::ModelInferResponse response;
    FillResponse(kInfo, *inference, AnswerFor(kInfo, 2), &response);
    EXPECT_EQ(response.model_name(), "mnist");
    EXPECT_EQ(response.model_version(), "7");
    EXPECT_EQ(response.id(), "a-17");
    EXPECT_EQ(response.parameters().at("version").int64_param(), 7);
    EXPECT_EQ(response.parameters().at("step").int64_param(), 7);
    EXPECT_EQ(response.parameters().at("digest").string_param(), "digest-7");
    EXPECT_EQ(response.parameters().at("queue_microseconds").int64_param(), 11);
    EXPECT_EQ(response.parameters().at("compute_microseconds").int64_param(), 12);
    EXPECT_EQ(response.parameters().at("batch_rows").int64_param(), 3);
    ASSERT_EQ(response.outputs_size(), 1);
    EXPECT_EQ(response.outputs(0).name(), "OUTPUT__0");
    EXPECT_EQ(response.outputs(0).datatype(), "FP32");
    EXPECT_THAT(response.outputs(0).shape(), ElementsAre(2, 4));
    const std::vector<float> expected = {0, 1, 2, 3, 10, 11, 12, 13};
    EXPECT_EQ(response.raw_output_contents_size(), raw ? 1 : 0);
    EXPECT_EQ(response.outputs(0).has_contents(), !raw);
    if (raw) {
      const std::string& bytes = response.raw_output_contents(0);
      EXPECT_EQ(FloatsOf({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}), expected);
    } else {
      const auto& values = response.outputs(0).contents().fp32_contents();
      EXPECT_EQ(std::vector<float>(values.begin(), values.end()), expected);
    }
  }
}

TEST(OpenInferenceTest, AnAutoencoderHasTwoOutputsInTheOrderAskedFor) {
  ModelInfo info = kInfo;
  info.classes = 0;
  Message message = TypedInferRequest(2);
  message.add_outputs()->set_name("OUTPUT__1");
  message.add_outputs()->set_name("OUTPUT__0");
  const auto inference = ToInference(info, message, kNow, absl::InfiniteFuture());
  ASSERT_THAT(inference, IsOk());
  inference::ModelInferResponse response;
  FillResponse(info, *inference, AnswerFor(info, 2), &response);
  ASSERT_EQ(response.outputs_size(), 2);
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(2, 1));
  EXPECT_THAT(response.outputs(0).contents().fp32_contents(), ElementsAre(6, 16));
  EXPECT_THAT(response.outputs(1).shape(), ElementsAre(2, 1, 2, 3));
  EXPECT_THAT(response.outputs(1).contents().fp32_contents(), ElementsAre(0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15));
}

TEST(OpenInferenceTest, VersionsAreNumbers) {
  EXPECT_EQ(*ParseModelVersion(""), 0u);
  EXPECT_EQ(*ParseModelVersion("469"), 469u);
  EXPECT_EQ(*ParseModelVersion("18446744073709551615"), 18446744073709551615u);
  EXPECT_THAT(ParseModelVersion("0"), StatusIs(absl::StatusCode::kNotFound));
  for (const char* text : {"-1", "1.0", " 1", "0x1", "stable", "18446744073709551616"}) {
    EXPECT_THAT(ParseModelVersion(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  }
}

// Whatever shape, datatype and sizes a stranger sends, what passes is what the engine takes.
RC_GTEST_PROP(OpenInferenceTest, WhatPassesIsWhatTheEngineTakes, ()) {
  Message message = EmptyInferRequest(*rc::gen::inRange(-1, 5), *rc::gen::element<std::string>("UINT8", "FP32"));
  auto& contents = *message.mutable_inputs(0)->mutable_contents();
  for (int i = *rc::gen::inRange(0, 4) * 6; i > 0; --i) contents.add_uint_contents(i);
  for (int i = *rc::gen::inRange(0, 4) * 6; i > 0; --i) contents.add_fp32_contents(1.5f);
  for (int i = *rc::gen::inRange(0, 3); i > 0; --i) {
    message.add_raw_input_contents(std::string(*rc::gen::inRange(0, 13) * 6, '\1'));
  }
  const auto inference = Translate(message);
  if (!inference.ok()) return;
  RC_ASSERT(CheckRequest(kInfo, inference->request).ok());
  RC_ASSERT(static_cast<int64_t>(inference->request.rows) == message.inputs(0).shape(0));
}

}  // namespace
}  // namespace millrace
