#include "services/model/batch_job.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "services/model/image_preparation.h"

namespace millrace {
namespace {

std::span<const float> FloatsOf(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}

}  // namespace

void BatchJob::Compute(const Clock& clock) {
  DecodePictures();
  computing = clock.Now();
  const std::vector<Part*> wanted = StillWanted();
  if (wanted.empty()) return;
  for (const Part* part : wanted) rows += part->rows;

  const EngineCall& first = *wanted.front()->call;  // all are computed in the same way
  VersionSeries& series = first.version->series();
  // Counted apart from the choice above, so that a mistake in it shows.
  for (const Part* part : wanted) {
    if (part->call->request.deadline <= computing) series.CountExpiredExecuted(part->rows);
  }
  std::vector<uint8_t> gathered;
  const std::span<const uint8_t> pixels = Gather(wanted, gathered);
  const Predictor& predictor = first.version->predictor();
  const bool floats = first.request.kind == InferenceRequest::Kind::kFloats;
  RowAnswers answers = floats ? RunRows(predictor, FloatsOf(pixels), rows, first.request.deterministic)
                              : RunRows(predictor, pixels, rows, first.request.deterministic);
  compute = clock.Now() - computing;

  series.ObserveBatch(rows, batch.release);
  first.version->statistics()->CountBatch(rows, compute);
  DriftWatch* const drift = series.drift();
  if (drift != nullptr && drift->classes() == first.version->info().classes && answers.faults.empty()) {
    if (floats) {
      drift->Observe(answers.values, FloatsOf(pixels), rows);
    } else {
      drift->Observe(answers.values, pixels, rows);
    }
  }
  Distribute(wanted, std::move(answers));
}

void BatchJob::DecodePictures() {
  for (Part& part : parts) {
    const EngineCall& call = *part.call;
    if (call.request.kind != InferenceRequest::Kind::kImage || call.unwanted) continue;
    absl::StatusOr<std::vector<uint8_t>> pixels = RowOfPicture(call.request.input, call.version->info().input);
    if (pixels.ok()) part.decoded = *std::move(pixels);
    part.fault = pixels.status();
  }
}

std::vector<BatchJob::Part*> BatchJob::StillWanted() {
  std::vector<Part*> wanted;
  for (Part& part : parts) {
    if (part.call->unwanted) {
      part.fault = absl::CancelledError("the client cancelled the request");
    } else if (part.fault.ok() && part.call->request.deadline <= computing) {
      part.fault = absl::DeadlineExceededError("the deadline passed before the forward pass began");
    }
    if (part.fault.ok()) wanted.push_back(&part);
  }
  return wanted;
}

std::span<const uint8_t> BatchJob::PixelsOf(const Part& part) {
  if (!part.decoded.empty()) return part.decoded;
  const uint64_t row_bytes = RowBytes(part.call->version->info(), part.call->request);
  return part.call->request.input.subspan(part.first_row * row_bytes, part.rows * row_bytes);
}

std::span<const uint8_t> BatchJob::Gather(const std::vector<Part*>& wanted, std::vector<uint8_t>& gathered) const {
  const std::span<const uint8_t> first = PixelsOf(*wanted.front());
  if (wanted.size() == 1) return first;
  gathered.reserve(rows * (first.size() / wanted.front()->rows));
  for (const Part* part : wanted) {
    const std::span<const uint8_t> pixels = PixelsOf(*part);
    gathered.insert(gathered.end(), pixels.begin(), pixels.end());
  }
  return gathered;
}

void BatchJob::Distribute(const std::vector<Part*>& wanted, RowAnswers answers) {
  const auto row_values = static_cast<ptrdiff_t>(parts.front().call->version->info().values_per_row());
  auto fault = answers.faults.begin();
  uint32_t row = 0;
  for (Part* part : wanted) {
    const uint32_t end = row + part->rows;
    std::vector<float>& values = part->call->answer.values;
    if (fault != answers.faults.end() && fault->row < end) {
      part->fault = absl::Status(fault->status.code(), absl::StrCat("row ", part->first_row + fault->row - row, ": ",
                                                                    fault->status.message()));
      while (fault != answers.faults.end() && fault->row < end) ++fault;
    } else if (part->rows < part->call->answer.rows) {
      std::copy(answers.values.begin() + row * row_values, answers.values.begin() + end * row_values,
                values.begin() + part->first_row * row_values);
    } else if (wanted.size() == 1) {
      values = std::move(answers.values);
    } else {
      values.assign(answers.values.begin() + row * row_values, answers.values.begin() + end * row_values);
    }
    row = end;
  }
}

}  // namespace millrace
