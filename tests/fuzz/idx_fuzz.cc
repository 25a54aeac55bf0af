// Whatever bytes a dataset file holds, reading it gives an array or an error.
#include "services/data/idx.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const millrace::MemoryFile file(data, size);
  for (int rank : {1, 3}) {
    auto array = millrace::ReadIdx(file.path(), rank, {.values_max = 1 << 20});
    if (!array.ok()) continue;
    uint64_t sum = 0;
    for (uint8_t value : array->span()) sum += value;
    volatile uint64_t sink = sum;
    (void)sink;
  }
  return 0;
}
