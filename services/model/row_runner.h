// A batch through a model, such that a row which the model cannot answer does not take its neighbours with it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "services/model/predictor.h"

namespace millrace {

struct RowFault {
  uint32_t row = 0;
  absl::Status status;
};

struct RowAnswers {
  std::vector<float> values;     // [rows, ModelInfo::values_per_row()]; of a faulty row: of no meaning
  std::vector<RowFault> faults;  // by row
};

// pixels: uint8 [rows, channels, height, width]. If the forward pass fails, or answers with what is not a finite
// number, the rows are halved and tried again until what is left to blame is single rows: each is INTERNAL, or what
// LibTorch said. `alone`: each row is computed by itself, so that its bits depend on nothing but the row: kernels are
// chosen by the size of a batch, and a row may round differently in another place of it.
RowAnswers RunRows(const Predictor& predictor, std::span<const uint8_t> pixels, uint32_t rows, bool alone);
// The same for pixels that are float32.
RowAnswers RunRows(const Predictor& predictor, std::span<const float> pixels, uint32_t rows, bool alone);

}  // namespace millrace
