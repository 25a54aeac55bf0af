#include "services/model/rest_open_inference.h"

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kInput[] = R"({"name": "INPUT__0", "datatype": "UINT8", "shape": [1, 1, 2, 3])";

std::string RequestWith(const std::string& rest_of_input, const std::string& rest = "") {
  return R"({"inputs": [)" + std::string(kInput) + rest_of_input + "}]" + rest + "}";
}

inference::ModelInferResponse Response(const std::vector<float>& values) {
  inference::ModelInferResponse response;
  response.set_model_name("mnist");
  response.set_model_version("7");
  (*response.mutable_parameters())["step"].set_int64_param(7);
  (*response.mutable_parameters())["digest"].set_string_param("d");
  for (const char* name : {"OUTPUT__0", "OUTPUT__1"}) {
    auto* output = response.add_outputs();
    output->set_name(name);
    output->set_datatype("FP32");
    output->add_shape(static_cast<int64_t>(values.size()));
    response.add_raw_output_contents(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  }
  return response;
}

TEST(RestOpenInferenceTest, JsonDataIsTypedFlatOrNested) {
  for (const char* data : {R"(, "data": [1, 2, 3, 4, 5, 6])", R"(, "data": [[[[1, 2, 3], [4, 5, 6]]]])"}) {
    const auto request = InferRequestFromRest(
        RequestWith(data, R"(, "id": "a", "parameters": {"deterministic": true, "timeout": 5, "x": 1.5, "y": "s",
                             "big": 18446744073709551615, "null": null, "list": []})"),
        {});
    ASSERT_THAT(request, IsOk());
    EXPECT_EQ(request->id(), "a");
    EXPECT_TRUE(request->parameters().at("deterministic").bool_param());
    EXPECT_EQ(request->parameters().at("timeout").int64_param(), 5);
    EXPECT_EQ(request->parameters().at("x").double_param(), 1.5);
    EXPECT_EQ(request->parameters().at("y").string_param(), "s");
    EXPECT_EQ(request->parameters().at("big").uint64_param(), UINT64_MAX);
    EXPECT_EQ(request->parameters_size(), 5);
    ASSERT_EQ(request->inputs_size(), 1);
    EXPECT_EQ(request->inputs(0).name(), "INPUT__0");
    EXPECT_THAT(request->inputs(0).shape(), ElementsAre(1, 1, 2, 3));
    EXPECT_THAT(request->inputs(0).contents().uint_contents(), ElementsAre(1, 2, 3, 4, 5, 6));
    EXPECT_EQ(request->raw_input_contents_size(), 0);
  }
}

TEST(RestOpenInferenceTest, BinaryDataFollowsTheJson) {
  const std::string json = RequestWith(R"(, "parameters": {"binary_data_size": 6})");
  const auto request = InferRequestFromRest(json + std::string("\0\1\2\3\xff]", 6), json.size());
  ASSERT_THAT(request, IsOk());
  ASSERT_EQ(request->raw_input_contents_size(), 1);
  EXPECT_EQ(request->raw_input_contents(0), std::string("\0\1\2\3\xff]", 6));
}

TEST(RestOpenInferenceTest, EveryFaultIsSaid) {
  const std::string six = R"(, "parameters": {"binary_data_size": 6})";
  const std::vector<std::tuple<std::string, std::optional<size_t>, const char*>> cases = {
      {"[]", {}, "the request must be an object"},
      {"{}", {}, "'inputs' must be an array"},
      {R"({"inputs": [1]})", {}, "'inputs' must hold objects"},
      {R"({"inputs": [], "outputs": {}})", {}, "'outputs' must be an array"},
      {R"({"inputs": [], "outputs": [1]})", {}, "'outputs' must hold objects"},
      {R"({"inputs": [], "id": 1})", {}, "'id' must be a string"},
      {R"({"inputs": [], "parameters": []})", {}, "'parameters' must be an object"},
      {R"({"inputs": [{"name": "INPUT__0"}]})", {}, "input INPUT__0: 'shape' must be an array"},
      {R"({"inputs": [{"name": "INPUT__0", "shape": [1.5]}]})", {}, "'shape' must hold whole numbers"},
      {RequestWith(R"(, "data": [1, 256])"), {}, "input INPUT__0: UINT8 takes whole numbers from 0 to 255"},
      {RequestWith(R"(, "data": [1, 0.5])"), {}, "UINT8 takes whole numbers"},
      {RequestWith(R"(, "data": [[1], [2, 3]])"), {}, "input INPUT__0: rows of numbers differ"},
      {RequestWith(R"(, "data": 7)"), {}, "input INPUT__0: 'data' must be an array"},
      {RequestWith(six), {}, "binary_data_size does not fit the 0 bytes"},
      {RequestWith(six) + "12345", RequestWith(six).size(), "binary_data_size does not fit the 5 bytes"},
      {RequestWith(six) + "1234567", RequestWith(six).size(), "1 bytes beyond its tensors"},
      {RequestWith(R"(, "parameters": {"binary_data_size": -1})"), {}, "binary_data_size does not fit"},
      {RequestWith(R"(, "parameters": {"binary_data_size": "6"})"), {}, "binary_data_size does not fit"},
      {"{}", 3, "Inference-Header-Content-Length is 3, the body has 2 bytes"},
      {"{}x", 1, "not JSON"},
  };
  for (const auto& [body, json_bytes, message] : cases) {
    EXPECT_THAT(InferRequestFromRest(body, json_bytes),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << body;
  }
}

TEST(RestOpenInferenceTest, OutputsAreJsonUnlessTheyAreAskedForInBinary) {
  const inference::ModelInferResponse response = Response({0.1f, 2});
  inference::ModelInferRequest request;
  RestBody body = InferResponseToRest(request, response);
  EXPECT_FALSE(body.json_bytes.has_value());
  EXPECT_EQ(body.bytes, R"({"model_name":"mnist","model_version":"7","outputs":[)"
                        R"({"data":[0.1,2.0],"datatype":"FP32","name":"OUTPUT__0","shape":[2]},)"
                        R"({"data":[0.1,2.0],"datatype":"FP32","name":"OUTPUT__1","shape":[2]}],)"
                        R"("parameters":{"digest":"d","step":7}})");

  (*request.mutable_parameters())["binary_data_output"].set_bool_param(true);
  auto* wanted = request.add_outputs();
  wanted->set_name("OUTPUT__0");
  (*wanted->mutable_parameters())["binary_data"].set_bool_param(false);
  body = InferResponseToRest(request, response);
  ASSERT_TRUE(body.json_bytes.has_value());
  ASSERT_EQ(body.bytes.size(), *body.json_bytes + 8);
  const auto json = nlohmann::json::parse(body.bytes.substr(0, *body.json_bytes));
  EXPECT_TRUE(json["outputs"][0].contains("data"));
  EXPECT_FALSE(json["outputs"][1].contains("data"));
  EXPECT_EQ(json["outputs"][1]["parameters"]["binary_data_size"], 8);
  EXPECT_EQ(body.bytes.substr(*body.json_bytes), response.raw_output_contents(1));
}

TEST(RestOpenInferenceTest, AnIdThatIsNoUtf8DoesNotBreakTheAnswer) {
  inference::ModelInferResponse response = Response({1});
  response.set_id("\xff\xfe");
  EXPECT_THAT(InferResponseToRest({}, response).bytes, HasSubstr("mnist"));
}

}  // namespace
}  // namespace millrace
