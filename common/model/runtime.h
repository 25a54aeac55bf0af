// The process-wide LibTorch settings that reproducible gradients depend on, and the facts about this process that
// decide which bits come out.
#pragma once

#include <string>

namespace millrace {

// Call first thing in every process that runs a network, before the first forward pass. Sets `threads` intra-op
// threads (>= 1; 1 is both fastest and deterministic when several workers share a machine), one inter-op thread, and
// switches TorchScript's profiling executor off: that one rewrites a graph after its first runs, and the same weights
// and batch then give other gradient bits. Idempotent; not safe against concurrent use of LibTorch.
void ConfigureTorch(int threads);

// OpenMP's thread count belongs to the calling thread; threads that were not started by LibTorch (gRPC's, std::thread)
// would use every core. Replica and ServableModel call this themselves. Costs nothing after a thread's first call.
void ConfigureTorchThread();

// What the bits of a gradient depend on besides the job: part of every manifest's fingerprint.
std::string TorchVersion();   // e.g. "1.13.1"
std::string CpuCapability();  // e.g. "AVX2": the instruction set LibTorch's kernels were dispatched to

}  // namespace millrace
