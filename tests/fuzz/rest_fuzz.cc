// Whatever body a stranger sends to REST, it is refused, or is what the engine takes and gets an answer that is JSON.
#include "services/model/rest_json.h"
#include "services/model/rest_open_inference.h"
#include "services/model/rest_tensorflow.h"
#include "tests/fuzz/infer_anyway.h"

namespace millrace {
namespace {

void OpenInferenceRest(const ModelInfo& info, std::string_view body, std::optional<size_t> json_bytes) {
  const auto message = InferRequestFromRest(body, json_bytes);
  inference::ModelInferResponse response;
  if (!message.ok() || !InferAnyway(info, *message, true, &response)) return;
  const RestBody answer = InferResponseToRest(*message, response);
  const std::string_view bytes = answer.bytes;
  if (!ParseRestJson(bytes.substr(0, answer.json_bytes.value_or(bytes.size()))).ok()) std::abort();
}

void TensorFlowRest(const ModelInfo& info, std::string_view body) {
  const auto request = PredictFromRest(info, body);
  inference::ModelInferResponse response;
  if (!request.ok() || !InferAnyway(info, request->message, true, &response)) return;
  if (!ParseRestJson(PredictToRest(*request, response)).ok()) std::abort();
}

}  // namespace
}  // namespace millrace

// The first byte says what the body is for; the second and third where its JSON ends.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const millrace::ModelInfo info = millrace::FuzzedModel(data[0] & 1);
  const std::string_view body(reinterpret_cast<const char*>(data) + 3, size - 3);
  if (data[0] & 2) {
    millrace::TensorFlowRest(info, body);
  } else if (data[0] & 4) {
    millrace::OpenInferenceRest(info, body, size_t{data[1]} << 8 | data[2]);
  } else {
    millrace::OpenInferenceRest(info, body, {});
  }
  return 0;
}
