// What networks compute on: the processor, or a GPU through LibTorch's CUDA back end. No LibTorch in this header.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace millrace {

// The device that `wanted` ("auto", "cpu", "cuda" or "cuda:N") means in this process: "cpu" or "cuda:N". auto is the
// first GPU, or the processor where there is none. INVALID_ARGUMENT for anything else, FAILED_PRECONDITION for a GPU
// that this machine, or this build of LibTorch, does not have.
absl::StatusOr<std::string> ResolveDevice(std::string_view wanted);

// Makes a GPU's kernels give the same bits every time (deterministic algorithms, no autotuning, no TF32), which costs
// speed. Nothing for "cpu". Call with ConfigureTorch, before the first forward pass.
void ConfigureDevice(std::string_view device);

}  // namespace millrace
