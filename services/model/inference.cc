#include "services/model/inference.h"

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "services/model/image_decoder.h"

namespace millrace {

absl::Status CheckRequest(const ModelInfo& info, const InferenceRequest& request) {
  if (request.kind == InferenceRequest::Kind::kImage) {
    if (request.rows > 1) return absl::InvalidArgumentError("encoded_image is one row; rows must be 0 or 1");
    if (request.input.size() > kEncodedImageBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the image has ", request.input.size(), " bytes, over the limit of ", kEncodedImageBytesMax));
    }
    return absl::OkStatus();
  }
  if (request.rows == 0 || request.rows > kPredictRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat("rows is ", request.rows, "; the limit is ", kPredictRowsMax));
  }
  const bool floats = request.kind == InferenceRequest::Kind::kFloats;
  const uint64_t expected = RowBytes(info, request) * request.rows;
  if (request.input.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat("model ", info.model, " takes ", floats ? "float32" : "uint8",
                                                   " [rows, ", info.input.channels, ", ", info.input.height, ", ",
                                                   info.input.width, "]: ", expected,
                                                   " bytes for rows = ", request.rows, ", got ", request.input.size()));
  }
  return absl::OkStatus();
}

uint64_t RowBytes(const ModelInfo& info, const InferenceRequest& request) {
  switch (request.kind) {
    case InferenceRequest::Kind::kRaw:
      return info.input.bytes();
    case InferenceRequest::Kind::kFloats:
      return info.input.bytes() * sizeof(float);
    case InferenceRequest::Kind::kImage:
      return request.input.size();
  }
  return 0;
}

}  // namespace millrace
