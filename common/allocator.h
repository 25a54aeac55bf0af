#pragma once

namespace millrace {

// Tells glibc's malloc to keep freed memory instead of giving large blocks back to the kernel at once. A training step
// frees and allocates the same megabytes again and again, and faulting the pages in anew took a third of its time.
// Costs resident memory, so call it only where steps or inferences run: once, at the start of main. No effect under
// another allocator or a sanitizer.
void TuneAllocator();

}  // namespace millrace
