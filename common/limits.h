// The limits that more than one part of the project holds its input to. A limit of one part alone is stated there.
#pragma once

#include <cstdint>

namespace millrace {

// Of a job: samples of one step or of one evaluation unit, parts of a step, passes over the samples.
inline constexpr uint32_t kBatchSamplesMax = 65'536;
inline constexpr uint32_t kSlotsMax = 1024;
inline constexpr uint32_t kEpochsMax = 100'000;

// How many steps a gradient may be behind; and what "unbounded" is bounded by: the steps that can be under way at once,
// each with its sums on every shard.
inline constexpr uint32_t kStalenessMax = 16;
inline constexpr uint32_t kUnboundedSteps = 64;

// Parameter-server processes of one job.
inline constexpr uint32_t kShardsMax = 64;

// Data-service processes of one job.
inline constexpr uint32_t kDataReplicasMax = 16;

inline constexpr uint32_t kClassesMax = 1000;

// Batches that one stream may have asked for and not received.
inline constexpr uint64_t kOutstandingBatchesMax = 1024;

// Images in one request for predictions.
inline constexpr uint32_t kPredictRowsMax = 1024;

// Of each kind, newest ones and others, that one listing of a version source may ask for.
inline constexpr uint32_t kExportedVersionsMax = 64;

// One gRPC message. One MiB of payload per message is the rule on our streams; the limit leaves room for unary calls
// that carry a model.
inline constexpr int kMessageBytesMax = 64 << 20;

// Calls at once on one connection to a server; a client's further ones wait on its side.
inline constexpr int kCallsPerConnectionMax = 1024;

}  // namespace millrace
