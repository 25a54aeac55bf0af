#!/usr/bin/env python3
"""What a step costs apart from its computation, by the number of workers and shards, and what a checkpoint adds.

Workers that compute nothing against real shards, all on this machine's cores over Unix sockets: scaling_bench measures
one combination, this file a grid of them. Prints a table, the slope per worker and per shard (least squares), and how
long steps take while a checkpoint is being made; --json keeps all figures, for cost_model.py.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

from cost_model import least_squares

WORKERS = (1, 8, 64)
SHARDS = (1, 2, 4, 8)
# A network whose step is hardly more than messages, beside the default one, to tell what bytes cost from what messages do.
SMALL = [{"workers": w, "shards": s, "model": "lenet5"} for w in (1, 8, 64) for s in (1, 4)]
GRID = [{"workers": w, "shards": s, "model": "cnn"} for s in SHARDS for w in WORKERS]
# For cost_model.py to predict: other numbers of workers and shards, and a network of another size.
UNSEEN = [{"workers": 4, "shards": 2, "model": "mlp"}, {"workers": 16, "shards": 4, "model": "mlp"},
          {"workers": 24, "shards": 3, "model": "cnn"}, {"workers": 32, "shards": 2, "model": "lenet5"}]
# 9,917,450 parameters.
CHECKPOINT = {"workers": 2, "shards": 1, "model": "mlp", "image-size": 93, "slots": 2, "checkpoint-steps": 40}
CHECKPOINTS = 6
COMPUTE_MS = (0, 100)  # a lease's computation, as far as it is simulated: a pause


class Scaling:
    def __init__(self, build):
        self.bench = os.path.join(build, "bench", "scaling_bench")
        self.bin = os.path.join(build, "bin")

    def measure(self, seconds=3, **combination):
        """What scaling_bench prints of one combination of its flags."""
        directory = tempfile.mkdtemp()
        try:
            command = [self.bench, "--bin", self.bin, "--out", os.path.join(directory, "out"), "--seconds", str(seconds)]
            for name, value in combination.items():
                command += [f"--{name}", str(value)]
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                                  timeout=600, text=True, check=True)
            return {"model": combination["model"], **json.loads(done.stdout)}
        finally:
            shutil.rmtree(directory)

    def grid(self, combinations, seconds=3):
        for done, combination in enumerate(combinations):
            print(f"\r  {done + 1} of {len(combinations)}", end="", file=sys.stderr)
            yield self.measure(seconds, **combination)
        print(file=sys.stderr)

    def checkpoints(self, compute_ms):
        """Steps while a checkpoint is made, and the others."""
        combination = {**CHECKPOINT, "compute-ms": compute_ms}
        probe = self.measure(1, **{**combination, "checkpoint-steps": 1_000_000})
        seconds = combination["checkpoint-steps"] * CHECKPOINTS * probe["median_step_ms"] / 1e3
        return {"compute_ms": compute_ms, **self.measure(seconds, **combination)}


def slopes(results):
    """Milliseconds per step as constant + per worker + per shard."""
    constant, worker, shard = least_squares([[1, r["workers"], r["shards"]] for r in results],
                                            [r["median_step_ms"] for r in results])
    return {"constant_ms": constant, "per_worker_ms": worker, "per_shard_ms": shard}


def show_grid(results):
    workers = sorted({r["workers"] for r in results})
    print("ms per step".ljust(14) + "".join(f"{w} worker{'s' if w > 1 else ''}".rjust(14) for w in workers))
    for shards in sorted({r["shards"] for r in results}):
        line = f"{shards} shard{'s' if shards > 1 else ''}".ljust(14)
        for w in workers:
            line += "".join(f"{r['median_step_ms']:14.2f}" for r in results if (r["workers"], r["shards"]) == (w, shards))
        print(line)


def stall(result):
    """Of every checkpoint, its longest step over the median of the steps outside checkpoints."""
    quiet = statistics.median(result["quiet_step_ms"])
    return [max(commit["step_ms"]) / quiet for commit in result["commits"]]


def show_checkpoints(result):
    quiet = sorted(result["quiet_step_ms"])
    print(f"{result['parameters']:,} parameters, computing {result['compute_ms']} ms, {len(result['commits'])} "
          f"checkpoints: outside of them a step takes "
          f"{statistics.median(quiet):.0f} ms, one in ten over {quiet[len(quiet) * 9 // 10]:.0f} ms, "
          f"the longest {quiet[-1]:.0f} ms")
    for commit, ratio in zip(result["commits"], stall(result)):
        print(f"  version {commit['version']}, made in {commit['commit_ms']:.0f} ms: "
              f"median step {statistics.median(commit['step_ms']):.0f} ms, "
              f"longest {max(commit['step_ms']):.0f} ms, {ratio:.2f} times the median outside")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["grid", "small", "unseen", "checkpoint"]
    parser.add_argument("--bin", required=True, help="the build directory")
    parser.add_argument("--seconds", type=float, default=3, help="of each combination")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--json", help="write all figures to this file")
    args = parser.parse_args()
    scaling = Scaling(args.bin)
    figures = {}
    for name, combinations in (("grid", GRID), ("small", SMALL), ("unseen", UNSEEN)):
        if name in args.only:
            figures[name] = list(scaling.grid(combinations, args.seconds))
    if "grid" in figures:
        show_grid(figures["grid"])
        figures["slopes"] = slopes(figures["grid"])
        print("a step takes {constant_ms:.2f} ms + {per_worker_ms:.2f} ms per worker + {per_shard_ms:.2f} ms per "
              "shard (least squares)".format(**figures["slopes"]))
    if "checkpoint" in args.only:
        figures["checkpoints"] = [scaling.checkpoints(ms) for ms in COMPUTE_MS]
        for result in figures["checkpoints"]:
            show_checkpoints(result)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
