// The metrics of one shard, labelled with its number: what Shard and ParameterService count. Making it twice gives the
// same series. Threads: any.
#pragma once

#include <cstdint>

#include "common/metrics.h"

namespace millrace {

struct ShardMetrics {
  ShardMetrics(Metrics* metrics, uint32_t shard);

  prometheus::Counter& steps_applied;
  prometheus::Gauge& version;
  prometheus::Counter& gradient_bytes;  // of chunks received, duplicates included
  prometheus::Counter& weight_bytes;    // of chunks sent
  prometheus::Counter& duplicate_chunks;
  prometheus::Counter& pushes_acknowledged;
  prometheus::Histogram& apply_seconds;  // scaling, optimizer and copying of one step
  prometheus::Histogram& staleness;      // of each applied push, in versions
  prometheus::Gauge& gradient_norm;  // over all shards, before it was clipped
  prometheus::Counter& clipped_steps;
  prometheus::Gauge& snapshots;
  prometheus::Counter& snapshots_dropped;     // retained ones that had to make room
  prometheus::Histogram& checkpoint_seconds;  // writing and syncing one file
  prometheus::Counter& checkpoint_bytes;
  prometheus::Counter& checkpoint_failures;
  prometheus::Gauge& exchanges;  // open now
};

}  // namespace millrace
