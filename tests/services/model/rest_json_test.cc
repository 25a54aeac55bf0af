#include "services/model/rest_json.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "inference/grpc_service.pb.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RestJsonTest, EveryLimitIsNamed) {
  const JsonLimits limits{.bytes = 40, .depth = 3, .containers = 5};
  EXPECT_THAT(ParseRestJson(R"({"a": [[1, "[[[[[[\"[[{{{{{"]]})", limits), IsOk());
  const auto refused = [&](const std::string& text, const std::string& message) {
    EXPECT_THAT(ParseRestJson(text, limits), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << text;
  };
  refused(std::string(41, ' '), "41 bytes, over the limit of 40");
  refused("[[[[1]]]]", "deeper than the limit of 3");
  refused("[[],[],[],[],[]]", "6 arrays and objects, over the limit of 5");
  refused("[1,", "not JSON");
  refused("[1e99]", "not JSON");
  refused("", "not JSON");
  EXPECT_THAT(ParseRestJson(std::string(1 << 20, '[')), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RestJsonTest, FloatsAreWrittenShortAndReadBackTheSame) {
  EXPECT_EQ(RestJson(0.1f).dump(), "0.1");
  EXPECT_EQ(RestJson(1e-7f).dump(), "1e-07");
  for (const float value : {0.1f, 1.f / 3, 3.4e38f, 1.2e-38f, 16777216.f}) {
    EXPECT_EQ(ParseRestJson(RestJson(value).dump())->get<float>(), value);
  }
}

TEST(RestJsonTest, MessagesHaveTheirFieldsByNameAndNumbersAsNumbers) {
  inference::ModelMetadataResponse metadata;
  metadata.set_name("mnist");
  metadata.add_versions("7");
  auto* input = metadata.add_inputs();
  input->set_name("INPUT__0");
  input->add_shape(-1);
  EXPECT_EQ(ToRestJson(metadata).dump(),
            R"({"inputs":[{"datatype":"","name":"INPUT__0","shape":[-1]}],"name":"mnist","outputs":[],)"
            R"("platform":"","versions":["7"]})");
  inference::ModelConfig config;
  config.mutable_version_policy()->mutable_latest()->set_num_versions(1);
  config.add_input()->set_data_type(inference::TYPE_UINT8);
  const RestJson json = ToRestJson(config);
  EXPECT_EQ(json["version_policy"]["latest"]["num_versions"], 1);
  EXPECT_EQ(json["input"][0]["data_type"], "TYPE_UINT8");
  EXPECT_FALSE(json.contains("dynamic_batching"));
}

TEST(RestJsonTest, NumbersHaveOneShape) {
  const auto read = [](const char* text) { return ReadNumbers(*ParseRestJson(text)); };
  const auto numbers = read("[[1, 2, 3], [4, 5, 255]]");
  ASSERT_THAT(numbers, IsOk());
  EXPECT_THAT(numbers->values, ElementsAre(1, 2, 3, 4, 5, 255));
  EXPECT_THAT(numbers->shape, ElementsAre(2, 3));
  EXPECT_TRUE(numbers->is_bytes);
  for (const char* text : {"[1.0]", "[-1]", "[256]", "[0.5]"}) EXPECT_FALSE(read(text)->is_bytes) << text;
  EXPECT_THAT(read("[]")->shape, ElementsAre(0));
  EXPECT_THAT(read("[[], []]")->shape, ElementsAre(2, 0));
  EXPECT_TRUE(read("7")->shape.empty());
  for (const char* text : {"[[1, 2], [3]]", "[[1], 2]", "[1, [2]]", "[[], [1]]", "[[[1]], [1]]", "[[[1]], [[[1]]]]"}) {
    EXPECT_THAT(read(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows of numbers differ"))) << text;
  }
  EXPECT_THAT(read("[true]"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a boolean is where a number")));
  EXPECT_THAT(read("[null]"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(read(R"([{"b64": ""}])"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace millrace
