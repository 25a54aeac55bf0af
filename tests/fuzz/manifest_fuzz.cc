// Whatever a manifest holds, reading it gives a manifest that can be written and read again, or an error.
#include <cstdlib>
#include <string_view>

#include "common/model/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto manifest = millrace::ManifestFromJson({reinterpret_cast<const char*>(data), size});
  if (manifest.ok() && !millrace::ManifestFromJson(millrace::ManifestToJson(*manifest)).ok()) std::abort();
  return 0;
}
