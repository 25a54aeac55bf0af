#pragma once

#include "common/batch_key.h"
#include "grpcpp/support/byte_buffer.h"
#include "services/data/augmenter.h"
#include "services/data/batches.h"
#include "services/data/dataset.h"

namespace millrace {

// What a batch's message holds besides image and label bytes, at most.
inline constexpr uint64_t kBatchOverheadBytes = 128;

// The serialized millrace.v1.Batch of `samples`, which index into `source`. Images go straight from the
// dataset to their place in the message, and augmented there if there is an `augmenter` (of the source's shape) and
// the batch is to train on. Pure.
grpc::ByteBuffer EncodeBatch(const BatchKey& key, const BatchSamples& samples, const Samples& source,
                             const Augmenter* augmenter = nullptr);

}  // namespace millrace
