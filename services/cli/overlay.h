// An explanation drawn over the image that it explains.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "millrace/v1/model.pb.h"

namespace millrace {

// A PNG of 10 x 10 pixels for each of the image: its grey, and over it in red what speaks for the target and in blue
// what speaks against it, the strongest pixel of the map in full colour. Pure. INVALID_ARGUMENT if map, image and size
// do not go together.
absl::StatusOr<std::string> OverlayPng(const v1::Explanation& explanation);

}  // namespace millrace
