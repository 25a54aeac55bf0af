#include "services/model/rest_tensorflow.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/model/open_inference.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const ModelInfo kInfo = FakeInfo("mnist", 7);

inference::ModelInferResponse ResponseOf(const ModelInfo& info, uint32_t rows) {
  OpenInference inference;
  inference.outputs = OutputsOf(info);
  inference.raw = true;
  InferenceAnswer answer;
  answer.rows = rows;
  for (uint64_t i = 0; i < rows * info.values_per_row(); ++i) answer.values.push_back(i + 0.5f);
  inference::ModelInferResponse response;
  FillResponse(info, inference, answer, &response);
  return response;
}

TEST(RestTensorFlowTest, ARowMayHaveAnyShapeThatIsTheModels) {
  for (const char* row : {"[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", "[[[1,2,3],[4,5,6]]]", "[[[1],[2],[3]],[[4],[5],[6]]]",
                          R"({"INPUT__0": [[1,2,3],[4,5,6]]})"}) {
    const auto request = PredictFromRest(kInfo, std::string(R"({"instances": [)") + row + "," + row + "]}");
    ASSERT_THAT(request, IsOk()) << row;
    EXPECT_FALSE(request->columns);
    const auto inference = ToInference(kInfo, request->message, absl::UnixEpoch(), absl::InfiniteFuture());
    ASSERT_THAT(inference, IsOk()) << row;
    EXPECT_EQ(inference->request.kind, InferenceRequest::Kind::kRaw);
    EXPECT_THAT(inference->request.input, ElementsAre(1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6));
  }
}

TEST(RestTensorFlowTest, InputsAreColumnsAndFractionsAreFloats) {
  for (const char* inputs : {"[[1,2,3,4,5,6.5]]", R"({"INPUT__0": [[[[1,2,3],[4,5,6.5]]]]})"}) {
    const auto request =
        PredictFromRest(kInfo, std::string(R"({"signature_name": "serving_default", "inputs": )") + inputs + "}");
    ASSERT_THAT(request, IsOk()) << inputs;
    EXPECT_TRUE(request->columns);
    EXPECT_EQ(request->message.inputs(0).datatype(), "FP32");
    EXPECT_THAT(request->message.inputs(0).contents().fp32_contents(), ElementsAre(1, 2, 3, 4, 5, 6.5f));
  }
}

TEST(RestTensorFlowTest, EveryFaultIsSaid) {
  for (const auto& [body, message] : std::vector<std::pair<const char*, const char*>>{
           {"[]", "either 'instances' or 'inputs'"},
           {"{}", "either 'instances' or 'inputs'"},
           {R"({"instances": [], "inputs": []})", "either 'instances' or 'inputs'"},
           {R"({"instances": 1})", "'instances' must be an array"},
           {R"({"inputs": 1})", "a number is where rows should be"},
           {R"({"instances": [[1,2]]})", "a row has shape [2]; the model takes [1, 2, 3] or [6]"},
           {R"({"instances": [[[1,2],[3,4],[5,6]]]})", "a row has shape [3, 2]"},
           {R"({"instances": [1]})", "a row has shape []"},
           {R"({"instances": []})", "a row has shape []"},
           {R"({"instances": [[1,2,3,4,5,6], [1,2]]})", "differ in length"},
           {R"({"instances": [{"b64": "AAAA"}]})", "the model takes one input, INPUT__0"},
           {R"({"instances": [{"INPUT__0": [], "x": 1}]})", "the model takes one input, INPUT__0"},
           {R"({"signature_name": "other", "instances": []})", "no signature but serving_default"},
       }) {
    EXPECT_THAT(PredictFromRest(kInfo, body), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << body;
  }
}

TEST(RestTensorFlowTest, AnswersAreRowsOrColumns) {
  TensorFlowPredict request;
  EXPECT_EQ(PredictToRest(request, ResponseOf(kInfo, 2)), R"({"predictions":[[0.5,1.5,2.5,3.5],[4.5,5.5,6.5,7.5]]})");
  request.columns = true;
  EXPECT_EQ(PredictToRest(request, ResponseOf(kInfo, 1)), R"({"outputs":[[0.5,1.5,2.5,3.5]]})");
  ModelInfo info = kInfo;
  info.classes = 0;
  EXPECT_EQ(PredictToRest(request, ResponseOf(info, 1)),
            R"({"outputs":{"OUTPUT__0":[[[[0.5,1.5,2.5],[3.5,4.5,5.5]]]],"OUTPUT__1":[[6.5]]}})");
  request.columns = false;
  EXPECT_EQ(PredictToRest(request, ResponseOf(info, 2)),
            R"({"predictions":[{"OUTPUT__0":[[[0.5,1.5,2.5],[3.5,4.5,5.5]]],"OUTPUT__1":[6.5]},)"
            R"({"OUTPUT__0":[[[7.5,8.5,9.5],[10.5,11.5,12.5]]],"OUTPUT__1":[13.5]}]})");
}

TEST(RestTensorFlowTest, StatusIsOfOneModel) {
  inference::RepositoryIndexResponse index;
  for (const auto& [name, version, state] : std::vector<std::tuple<const char*, const char*, const char*>>{
           {"mnist", "8", "UNAVAILABLE"}, {"mnist", "7", "READY"}, {"other", "7", "LOADING"}}) {
    auto* model = index.add_models();
    model->set_name(name);
    model->set_version(version);
    model->set_state(state);
    if (model->state() == "UNAVAILABLE") model->set_reason("digest");
  }
  EXPECT_EQ(*StatusToRest(index, "mnist", ""),
            R"({"model_version_status":[{"state":"END","status":{"error_code":"FAILED_PRECONDITION",)"
            R"("error_message":"digest"},"version":"8"},{"state":"AVAILABLE","status":{"error_code":"OK",)"
            R"("error_message":""},"version":"7"}]})");
  EXPECT_THAT(*StatusToRest(index, "mnist", "7"), HasSubstr("AVAILABLE"));
  EXPECT_THAT(*StatusToRest(index, "other", ""), HasSubstr("LOADING"));
  EXPECT_THAT(StatusToRest(index, "mnist", "9"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("version 9")));
  EXPECT_THAT(StatusToRest(index, "x", ""), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no model x")));
}

}  // namespace
}  // namespace millrace
