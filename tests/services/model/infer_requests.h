// Requests of the Open Inference Protocol for the fake models.
#pragma once

#include <cstdint>
#include <string>

#include "inference/grpc_service.pb.h"
#include "tests/services/model/fake_model.h"

namespace millrace {

inline inference::ModelInferRequest EmptyInferRequest(int64_t rows, const std::string& datatype) {
  inference::ModelInferRequest request;
  request.set_model_name("mnist");
  auto* input = request.add_inputs();
  input->set_name("INPUT__0");
  input->set_datatype(datatype);
  for (const int64_t size :
       {rows, int64_t{kFakeShape.channels}, int64_t{kFakeShape.height}, int64_t{kFakeShape.width}}) {
    input->add_shape(size);
  }
  return request;
}

inline inference::ModelInferRequest RawInferRequest(int64_t rows = 1) {
  inference::ModelInferRequest request = EmptyInferRequest(rows, "UINT8");
  request.add_raw_input_contents(std::string(kFakeShape.bytes() * rows, 'x'));
  return request;
}

inline inference::ModelInferRequest TypedInferRequest(int64_t rows = 1) {
  inference::ModelInferRequest request = EmptyInferRequest(rows, "UINT8");
  for (uint64_t i = 0; i < kFakeShape.bytes() * rows; ++i) {
    request.mutable_inputs(0)->mutable_contents()->add_uint_contents(i % 256);
  }
  return request;
}

}  // namespace millrace
