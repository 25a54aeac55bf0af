#!/usr/bin/env python3
"""What to expect of a cluster: bytes, time and processor time of a step, the coordinator's load and a shard's memory.

  cost_model.py --workers 1000 --shards 50 --slots 1024 --parameters 25e6 --compute-ms 200 --gigabits 25 --latency-us 50

Every process has a machine of its own with a full-duplex link. W workers, S shards, P parameters of b bytes on the wire,
a shard has p = P / S. Optimizer: Adam. No staleness, no clipping, no evaluation.

Leases. A worker gets width = floor2(slots / W) slots (the largest power of two), adds them and pushes once. Slots that
are left over (1,024 slots, 1,000 workers) are granted one lease at a time to whoever is done, so they cost another
round of computing and pushing: rounds are (width, leases), and N = the sum of leases is the number of pushes.

Bytes of a step. Worker: in P b, out P b for every round. Shard: in N p b, out W p b. Coordinator: small messages only.

Processor time of a step, by constants that are fitted to measurements (fit):
  worker  step + message S (n + rounds (n + 1)) + byte (in + out)     n = ceil(p / kChunkElements), common/tensor/wire.h
  shard   step + message (N (n + 1) + W n) + byte (in + out) + update p
  coordinator, on shard 0: N lease
Measured both ways together, so half of a byte's time counts as sending. What a shard does is taken to be serial.

Time of a step. Computing all of a worker's slots; then chunks go through a pipeline: worker sends, shard receives and
adds, optimizer, shard sends, worker receives; each stage takes the longer of processor and link. The first chunk takes
all stages, every further one the time of the busiest resource (processor or one direction of the link, of a worker or a
shard). To this come the two steps' constants and four latencies (the gradient, and the weights; each may take a window
update). Leases are granted a step ahead and cost no time, until N lease is longer than the rest of the step.

Memory of a shard, in p float32: 4 weights (newest, next, two before it) + wire copies of them if b < 4; 2 optimizer;
1 gradient sum; in random order of arrival 0.36 N partial sums (of N leaves of a binary tree that are there with
probability 1/2, that many nodes have no sibling); with checkpoints 2 snapshots and the committed one, 3 each. And of
every worker a chunk that is being received. Shard 0, while it commits a checkpoint, reads all of it: 3 P, and one
shard's file.
"""
import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass, replace

CHUNK_ELEMENTS = 262_144  # common/tensor/wire.h
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "mxint8": 33 / 32}  # common/tensor/number_format.h
HEARTBEATS_PER_SECOND = 2  # services/parameter_server/coordinator.h
REGISTRATIONS_PER_SECOND = 5  # of a shard, services/parameter_server/parameter_server.cc
SLOTS_MAX, SHARDS_MAX = 1024, 64  # common/limits.h
# Encoded, about: a report and one result in it, a lease.
REPORT_BYTES, RESULT_BYTES, LEASE_BYTES = 60, 45, 30


def least_squares(rows, values):
    """The x with the least |rows x - values|, by the normal equations."""
    n = len(rows[0])
    a = [[sum(r[i] * r[j] for r in rows) for j in range(n)] + [sum(r[i] * v for r, v in zip(rows, values))]
         for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(a[k][i]))
        a[i], a[pivot] = a[pivot], a[i]
        for k in range(n):
            if k != i:
                factor = a[k][i] / a[i][i]
                a[k] = [x - factor * y for x, y in zip(a[k], a[i])]
    return [a[i][n] / a[i][i] for i in range(n)]


def costs(rows, values):
    """The same for what cannot be negative, with relative errors: what comes out negative is left out."""
    rows = [[x / v for x in r] for r, v in zip(rows, values)]
    used = list(range(len(rows[0])))
    while True:
        scale = [max(abs(r[i]) for r in rows) for i in used]
        found = least_squares([[r[i] / s for i, s in zip(used, scale)] for r in rows], [1] * len(rows))
        if min(found) >= 0:
            return [found[used.index(i)] / scale[used.index(i)] if i in used else 0.0 for i in range(len(rows[0]))]
        used.pop(found.index(min(found)))


def floor2(n):
    return 1 << max(0, int(n).bit_length() - 1)


@dataclass
class Cluster:
    workers: int
    shards: int
    slots: int
    parameters: int
    compute_seconds: float = 0  # of a slot
    bandwidth: float = math.inf  # bytes per second and direction
    latency: float = 0  # seconds, one way
    number_bytes: float = NUMBER_BYTES["fp32"]

    def rounds(self):
        """(width, leases) of the rounds in which a step's slots are granted."""
        if self.workers == 1:
            return [(self.slots, 1)]
        rounds, free = [], self.slots
        while free > 0:
            width = floor2(free // self.workers) if free >= self.workers else 1
            leases = min(self.workers, free // width)
            rounds.append((width, leases))
            free -= width * leases
        return rounds

    @property
    def pushes(self):
        return sum(leases for _, leases in self.rounds())

    @property
    def range(self):
        return self.parameters / self.shards

    @property
    def chunks(self):
        return math.ceil(self.range / CHUNK_ELEMENTS)

    def worker_bytes(self):
        """In and out."""
        each = self.parameters * self.number_bytes
        return each, each * len(self.rounds())

    def shard_bytes(self):
        each = self.range * self.number_bytes
        return self.pushes * each, self.workers * each

    def coordinator_bytes(self):
        return self.pushes * REPORT_BYTES + self.slots * RESULT_BYTES, self.pushes * LEASE_BYTES

    def worker_messages(self):
        return self.shards * (self.chunks + len(self.rounds()) * (self.chunks + 1))

    def shard_messages(self):
        return self.pushes * (self.chunks + 1) + self.workers * self.chunks


@dataclass
class Constants:
    """Seconds of processor time."""
    worker_step: float
    worker_message: float
    worker_byte: float
    shard_step: float
    shard_message: float
    shard_byte: float
    shard_update: float  # of one parameter
    lease: float
    cores: float  # that so many processes on the measured machine got to use at once
    process_mib: float = 0  # resident memory of a shard without parameters or workers

    def worker_cpu(self, c):
        return self.worker_step + self.worker_message * c.worker_messages() + self.worker_byte * sum(c.worker_bytes())

    def shard_cpu(self, c):
        return (self.shard_step + self.shard_message * c.shard_messages() + self.shard_byte * sum(c.shard_bytes()) +
                self.shard_update * c.range)

    def coordinator_cpu(self, c):
        return self.lease * c.pushes


@dataclass
class Prediction:
    compute: float
    first_chunk: float
    further_chunks: float
    bottleneck: str
    constant: float  # the two steps' constants
    latency: float
    coordinator: float

    @property
    def step(self):
        return max(self.coordinator, self.compute + self.first_chunk + self.further_chunks + self.constant + self.latency)


def predict(c, k):
    """The time of a step, every process on a machine of its own."""
    chunk = c.range / c.chunks
    pushed, pulled = c.pushes, c.workers
    link = chunk * c.number_bytes / c.bandwidth
    of_worker = k.worker_message + chunk * c.number_bytes * k.worker_byte
    of_shard = k.shard_message + chunk * c.number_bytes * k.shard_byte
    update = k.shard_update * chunk
    stages = [max(c.shards * of_worker, c.shards * link), max(pushed * of_shard, pushed * link), update,
              max(pulled * of_shard, pulled * link), max(c.shards * of_worker, c.shards * link)]
    resources = {"workers' processors": 2 * c.shards * of_worker, "workers' links": c.shards * link,
                 "shards' processors": (pushed + pulled) * of_shard + update, "shards' links": max(pushed, pulled) * link}
    bottleneck = max(resources, key=resources.get)
    again = len(c.rounds()) - 1  # pushes of a worker before its last
    return Prediction(compute=sum(width for width, _ in c.rounds()) * c.compute_seconds,
                      first_chunk=sum(stages), further_chunks=(c.chunks - 1) * resources[bottleneck] +
                      again * c.chunks * stages[0], bottleneck=bottleneck, constant=k.worker_step + k.shard_step,
                      latency=4 * c.latency, coordinator=k.coordinator_cpu(c))


def predict_local(c, k):
    """Seconds of a step, all processes on the cores of the measured machine."""
    cpu = c.workers * k.worker_cpu(c) + c.shards * k.shard_cpu(c) + k.coordinator_cpu(c)
    return max(predict(replace(c, bandwidth=math.inf, latency=0), k).step, cpu / k.cores)


def memory(c, k, checkpoints=True):
    """Bytes of a shard, by what for."""
    p = 4 * c.range
    return {"process": k.process_mib * 2**20,
            "weights": 4 * p + (0 if c.number_bytes == 4 else 4 * c.number_bytes * c.range),
            "optimizer": 2 * p,
            "gradient sum": p,
            "partial sums": 0.36 * c.pushes * p if c.pushes > 1 else 0,
            "snapshots": 9 * p if checkpoints else 0,
            "receiving": c.workers * min(c.range, CHUNK_ELEMENTS) * c.number_bytes}


def cluster_of(result):
    return Cluster(result["workers"], result["shards"], result["slots"], result["parameters"])


def fit(results):
    """Constants from what scaling_bench printed of several combinations."""
    clusters = [cluster_of(r) for r in results]
    lease = [((r["shards_cpu_ms"][0] - statistics.mean(r["shards_cpu_ms"][1:])) / 1e3, c.pushes)
             for r, c in zip(results, clusters) if c.shards > 1]
    # Every lease counts the same: the few of a single worker say little.
    per_lease = max(0.0, sum(s for s, _ in lease) / sum(n for _, n in lease)) if lease else 0.0
    worker = costs([[1, c.worker_messages(), sum(c.worker_bytes())] for c in clusters],
                   [r["workers_cpu_ms"] / 1e3 / c.workers for r, c in zip(results, clusters)])
    shard = costs([[1, c.shard_messages(), sum(c.shard_bytes()), c.range] for c in clusters],
                  [max(1e-6, sum(r["shards_cpu_ms"]) / 1e3 - per_lease * c.pushes) / c.shards
                   for r, c in zip(results, clusters)])
    busy = [(r["workers_cpu_ms"] + sum(r["shards_cpu_ms"])) / r["step_ms"] for r in results if r["workers"] > 1]
    constants = Constants(*worker, *shard, per_lease, statistics.median(busy))
    base = [statistics.median(r["shards_peak_mib"]) - sum(memory(c, constants, False).values()) / 2**20
            for r, c in zip(results, clusters)]
    return replace(constants, process_mib=statistics.median(base))


def with_unit(value, unit, scale=1000):
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < scale or prefix == "T":
            return f"{value:.3g} {prefix}{unit}"
        value /= scale


def report(c, k, ledger_leases=None):
    p = predict(c, k)
    print(f"{c.workers:,} workers, {c.shards:,} shards of {c.range:,.0f} parameters in {c.chunks} chunks, {c.slots:,} slots")
    rounds = ", then ".join(f"{leases:,} leases of {width}" for width, leases in c.rounds())
    print(f"  leases of a step    {rounds}")
    for name, (received, sent) in (("a worker", c.worker_bytes()), ("a shard", c.shard_bytes()),
                                   ("the coordinator", c.coordinator_bytes())):
        print(f"  bytes of a step     {name}: in {with_unit(received, 'B')}, out {with_unit(sent, 'B')}")
    print(f"  time of a step      {p.step * 1e3:,.2f} ms: computing {p.compute * 1e3:,.2f}, first chunk "
          f"{p.first_chunk * 1e3:,.2f}, further chunks {p.further_chunks * 1e3:,.2f} (by the {p.bottleneck}), "
          f"per step {p.constant * 1e3:,.2f}, latency {p.latency * 1e3:,.2f}")
    print(f"  processor time      worker {k.worker_cpu(c) * 1e3:,.2f} ms besides computing, shard "
          f"{k.shard_cpu(c) * 1e3:,.2f} ms, coordinator {p.coordinator * 1e3:,.2f} ms")
    leases = c.pushes / p.step
    messages = 2 * leases + HEARTBEATS_PER_SECOND * c.workers + REGISTRATIONS_PER_SECOND * c.shards
    line = f"  coordinator         {messages:,.0f} messages/s, {leases:,.0f} leases/s"
    if k.lease > 0:
        line += f": {leases * k.lease:.1%} of what one core can do"
    if ledger_leases:
        line += f", {leases / ledger_leases:.1%} of the ledger's {ledger_leases:,.0f}"
    print(line)
    parts = memory(c, k)
    print(f"  memory of a shard   {with_unit(sum(parts.values()), 'B')}: " +
          ", ".join(f"{name} {with_unit(size, 'B')}" for name, size in parts.items()))
    print(f"  memory of shard 0   {with_unit(4 * (3 * c.parameters + 3 * c.range), 'B')} more while it commits")
    if c.shards > SHARDS_MAX or c.slots > SLOTS_MAX or c.workers > c.slots:
        print(f"  beyond the limits of {SHARDS_MAX} shards and {SLOTS_MAX:,} slots, or workers without a slot")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", required=True, help="what scaling.py --json wrote on the machines in question")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--parameters", type=float, default=25e6)
    parser.add_argument("--compute-ms", type=float, default=0, help="of one slot")
    parser.add_argument("--gigabits", type=float, default=25, help="per second and direction")
    parser.add_argument("--latency-us", type=float, default=50, help="one way")
    parser.add_argument("--wire", choices=NUMBER_BYTES, default="fp32")
    parser.add_argument("--ledger-leases", type=float, help="per second, as leases_bench prints it for so many workers")
    args = parser.parse_args()
    if min(args.workers, args.shards, args.slots, args.parameters) < 1:
        sys.exit("cost_model.py: workers, shards, slots and parameters must be at least 1")
    with open(args.measurements) as file:
        figures = json.load(file)
    constants = fit(figures["grid"] + figures["small"])
    print("constants: " + ", ".join(f"{name} {value:.3g}" for name, value in asdict(constants).items()))
    report(Cluster(args.workers, args.shards, args.slots, int(args.parameters), args.compute_ms / 1e3,
                   args.gigabits * 1e9 / 8, args.latency_us / 1e6, NUMBER_BYTES[args.wire]), constants, args.ledger_leases)
    for result in figures.get("unseen", []):
        c = cluster_of(result)
        predicted, measured = predict_local(c, constants) * 1e3, result["median_step_ms"]
        print(f"not fitted to: {c.workers} workers, {c.shards} shards, {c.parameters:,} parameters: predicted "
              f"{predicted:.2f} ms, measured {measured:.2f} ms, {predicted / measured:.2f}")


if __name__ == "__main__":
    main()
