#include "common/model/device.h"

#include <ATen/Context.h>
#include <torch/cuda.h>

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/strings.h"

namespace millrace {

absl::StatusOr<std::string> ResolveDevice(std::string_view wanted) {
  constexpr std::string_view kCuda = "cuda";
  if (wanted == "cpu") return "cpu";
  const bool automatic = wanted == "auto";
  uint32_t index = 0;
  const bool named = wanted.substr(0, kCuda.size()) == kCuda;
  const std::string_view rest = named ? wanted.substr(kCuda.size()) : "";
  const bool numbered = rest.size() > 1 && rest[0] == ':' && absl::SimpleAtoi(ToAbsl(rest.substr(1)), &index);
  if (!automatic && !(named && (rest.empty() || numbered))) {
    return absl::InvalidArgumentError(
        absl::StrCat("device \"", ToAbsl(wanted), "\" is none of auto, cpu, cuda and cuda:N"));
  }
  const size_t count = torch::cuda::is_available() ? torch::cuda::device_count() : 0;
  if (automatic && count == 0) return "cpu";
  if (index >= count) {
    const std::string why = count > 0 ? absl::StrCat("this machine has ", count, " of them, numbered from 0")
                            : at::Context::hasCUDA() ? "no GPU is present, or its driver does not answer"
                                                     : "no GPU is present, or this build of LibTorch cannot use one";
    return absl::FailedPreconditionError(absl::StrCat("device ", ToAbsl(wanted), " cannot be used: ", why));
  }
  return absl::StrCat("cuda:", index);
}

void ConfigureDevice(std::string_view device) {
  if (device == "cpu") return;
  // cuBLAS reads this when it is first used.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/true);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
}

}  // namespace millrace
