#pragma once

#include <cstdint>

namespace millrace {

// Samples whose visits one DataService.ExpectVisits request may ask for: what bounds its cost.
inline constexpr uint64_t kExpectedVisitsMax = 1 << 24;

}  // namespace millrace
