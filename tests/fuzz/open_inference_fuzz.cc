// Whatever message a stranger sends as ModelInfer, it is refused, or is what the engine takes and gets an answer.
#include "tests/fuzz/infer_anyway.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  inference::ModelInferRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  (void)millrace::ParseModelVersion(message.model_version());
  for (const bool classifies : {true, false}) {
    inference::ModelInferResponse response;
    (void)millrace::InferAnyway(millrace::FuzzedModel(classifies), message, false, &response);
  }
  return 0;
}
