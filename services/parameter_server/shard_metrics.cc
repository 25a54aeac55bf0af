#include "services/parameter_server/shard_metrics.h"

#include <string>

namespace millrace {
namespace {

Metrics::Labels OfShard(uint32_t shard) { return {{"shard", std::to_string(shard)}}; }

}  // namespace

ShardMetrics::ShardMetrics(Metrics* metrics, uint32_t shard)
    : steps_applied(metrics->Counter("millrace_ps_steps_applied_total", "Optimizer steps applied.", OfShard(shard))),
      version(metrics->Gauge("millrace_ps_version", "Version of the newest weights, in steps.", OfShard(shard))),
      gradient_bytes(metrics->Counter("millrace_ps_gradient_bytes_total",
                                      "Gradient bytes received, duplicates included.", OfShard(shard))),
      weight_bytes(metrics->Counter("millrace_ps_weight_bytes_total", "Weight bytes sent.", OfShard(shard))),
      duplicate_chunks(metrics->Counter("millrace_ps_duplicate_chunks_total",
                                        "Gradient chunks that were held or applied already.", OfShard(shard))),
      pushes_acknowledged(
          metrics->Counter("millrace_ps_pushes_acknowledged_total", "Pushes acknowledged.", OfShard(shard))),
      apply_seconds(
          metrics->Histogram("millrace_ps_apply_seconds", "Time to apply one step.", LatencyBuckets(), OfShard(shard))),
      staleness(metrics->Histogram("millrace_ps_staleness_steps",
                                   "Steps between the weights that a gradient was computed on and those it changed.",
                                   {0, 1, 2, 4, 8, 16, 32, 64}, OfShard(shard))),
      gradient_norm(metrics->Gauge("millrace_ps_gradient_norm",
                                   "Norm of the last step's gradient over all shards, where the job clips it.",
                                   OfShard(shard))),
      clipped_steps(metrics->Counter("millrace_ps_clipped_steps_total",
                                     "Steps whose gradient was scaled down to the job's norm.", OfShard(shard))),
      snapshots(metrics->Gauge("millrace_ps_snapshots", "Snapshots retained for checkpoints.", OfShard(shard))),
      snapshots_dropped(metrics->Counter("millrace_ps_snapshots_dropped_total",
                                         "Retained snapshots dropped because too many were not released.",
                                         OfShard(shard))),
      checkpoint_seconds(metrics->Histogram("millrace_ps_checkpoint_seconds",
                                            "Time to write and sync the shard's file of a checkpoint.",
                                            LatencyBuckets(), OfShard(shard))),
      checkpoint_bytes(
          metrics->Counter("millrace_ps_checkpoint_bytes_total", "Checkpoint bytes written.", OfShard(shard))),
      checkpoint_failures(metrics->Counter("millrace_ps_checkpoint_failures_total",
                                           "Checkpoint files that could not be written.", OfShard(shard))),
      exchanges(metrics->Gauge("millrace_ps_exchanges", "Exchange streams open.", OfShard(shard))) {}

}  // namespace millrace
