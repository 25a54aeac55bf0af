// Whatever bytes a checkpoint file holds, reading it gives tensors that lie inside it or an error.
#include "common/tensor/safetensors.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const millrace::MemoryFile file(data, size);
  auto read = millrace::SafetensorsFile::Read(file.path());
  if (!read.ok()) return 0;
  volatile float sink = 0;
  for (const millrace::TensorView& tensor : read->tensors()) {
    for (float value : tensor.values) sink = value;
  }
  (void)sink;
  return 0;
}
