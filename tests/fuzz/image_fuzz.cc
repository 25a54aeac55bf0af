// Whatever a stranger calls a PNG or a JPEG, decoding it gives pixels or an error.
#include <cstdlib>

#include "services/model/image_decoder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (uint32_t channels : {1u, 3u}) {
    (void)millrace::DecodeImage({data, size}, channels);
  }
  return 0;
}
