#!/usr/bin/env python3
"""Runs the benchmarks and prints one table: figure, baseline, ratio, target.

Everything is a ratio against a baseline measured in the same run. Each pair is measured `--rounds` times in turn (A B A
B ...), so that a change in the machine's speed meets both; what is shown is the median of the rounds, with the lowest
and highest ratio.
"""
import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile

import cost_model
import scaling
import serving
from measure import ONE_THREAD, Row, run_json
from serving import service

HERE = os.path.dirname(os.path.abspath(__file__))


class Benchmarks:
    def __init__(self, build, rounds, data_dir):
        self.build = build
        self.bin = os.path.join(build, "bin")
        self.bench = os.path.join(build, "bench")
        self.rounds = rounds
        self.data_dir = data_dir

    def train(self, workers, slots, batch, epochs=1):
        """Images per second of `millrace train`, as it reports them itself."""
        with tempfile.TemporaryDirectory() as directory:
            result = os.path.join(directory, "result.json")
            command = [os.path.join(self.bin, "millrace"), "train", "--data-dir", self.data_dir, "--workers", str(workers),
                       "--slots", str(slots), "--batch-size", str(batch), "--epochs", str(epochs), "--no-serving",
                       "--out", os.path.join(directory, "out"), "--json", result]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
            with open(result) as file:
                return json.load(file)["images_per_second"]

    def loop(self, threads, batch, processes=1):
        """Images per second of so many plain loops at once, all together."""
        command = [os.path.join(self.bench, "train_loop_bench"), "--threads", str(threads), "--batch", str(batch)]
        environment = ONE_THREAD if threads == 1 else {}
        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            loops = [pool.submit(run_json, command, environment) for _ in range(processes)]
        return sum(loop.result()["images_per_second"] for loop in loops)

    def ddp(self, form):
        command = ["/usr/bin/python3", os.path.join(HERE, "ddp_baseline.py"), "--form", form]
        return run_json(command, ONE_THREAD)["images_per_second"]

    def training(self):
        """2 workers of one thread, batch 256, against twice the plain loop, and against DistributedDataParallel."""
        have_torch = subprocess.run(["/usr/bin/python3", "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0
        if not have_torch:
            print("python3-torch is not installed: no comparison with DistributedDataParallel", file=sys.stderr)
        figures = {name: [] for name in ("loop_1", "loop_2", "loops_at_once", "train_1", "train_2", "ddp_natural", "ddp_tuned")}
        for _ in range(self.rounds):
            figures["loop_1"].append(self.loop(1, 128))
            figures["loops_at_once"].append(self.loop(1, 128, processes=2))
            figures["train_2"].append(self.train(2, 2, 256))
            if have_torch:
                figures["ddp_natural"].append(self.ddp("natural"))
                figures["ddp_tuned"].append(self.ddp("tuned"))
            figures["train_1"].append(self.train(1, 1, 128))
            figures["loop_2"].append(self.loop(2, 256))
        median = {name: statistics.median(values) for name, values in figures.items() if values}

        def against(name, mine, baseline, factor, target):
            ratios = [a / (factor * b) for a, b in zip(figures[mine], figures[baseline])]
            return Row(name, f"{median[mine]:,.0f} images/s", f"{factor * median[baseline]:,.0f} images/s", ratios,
                       f">= {target}" if target else "-", target is None or statistics.median(ratios) >= target, figures)

        rows = [against("2 workers / 2 x plain loop, 1 thread", "train_2", "loop_1", 2, 0.85),
                against("2 workers / 2 plain loops at once that share nothing", "train_2", "loops_at_once", 1, None),
                against("2 workers / plain loop, 2 threads", "train_2", "loop_2", 1, None),
                against("1 worker / plain loop, 1 thread", "train_1", "loop_1", 1, None)]
        if have_torch:
            rows.append(against("2 workers / DDP gloo, network as anyone writes it", "train_2", "ddp_natural", 1, 1.5))
            rows.append(against("2 workers / DDP gloo, network tuned alike", "train_2", "ddp_tuned", 1, 1.5))
        return rows

    def exchange(self):
        """Push and pull of the default network against a raw gRPC echo of the same bytes."""
        results = [run_json([os.path.join(self.bench, "exchange_bench")], ONE_THREAD) for _ in range(self.rounds)]
        ratios = [r["echo_seconds"] / r["exchange_seconds"] for r in results]
        median = {key: statistics.median(r[key] for r in results) for key in results[0]}
        return [Row("push + pull / raw gRPC echo (optimizer taken out)", f"{median['exchange_seconds'] * 1e3:.2f} ms",
                    f"{median['echo_seconds'] * 1e3:.2f} ms", ratios, ">= 0.8", statistics.median(ratios) >= 0.8,
                    {"results": results})]

    def leases(self):
        """Leases per second through the coordinator's ledger."""
        results = [run_json([os.path.join(self.bench, "leases_bench")]) for _ in range(self.rounds)]
        median = {workers: statistics.median(r[workers] for r in results) for workers in results[0]}
        return [Row(f"ledger, {int(workers):,} workers / 1 worker", f"{rate:,.0f} leases/s", f"{median['1']:,.0f} leases/s",
                    [r[workers] / r["1"] for r in results], ">= 20,000 leases/s", rate >= 20_000, {"results": results})
                for workers, rate in median.items() if workers != "1"]

    def scaling(self):
        """A step without its computation by workers and shards, once each; what cost_model.py predicts from that."""
        bench = scaling.Scaling(self.build)
        grid, small, unseen = (list(bench.grid(part)) for part in (scaling.GRID, scaling.SMALL, scaling.UNSEEN))
        scaling.show_grid(grid)
        slopes = scaling.slopes(grid)
        step = {(r["workers"], r["shards"]): r["median_step_ms"] for r in grid}

        def against(name, mine, baseline):
            return Row(name, f"{step[mine]:.2f} ms", f"{step[baseline]:.2f} ms", [step[mine] / step[baseline]], "-", True,
                       {"grid": grid, "slopes": slopes})

        rows = [against(f"step of {w} simulated workers / 1, 1 shard", (w, 1), (1, 1)) for w in scaling.WORKERS[1:]]
        rows += [against(f"step with {s} shards / 1, 8 simulated workers", (8, s), (8, 1)) for s in scaling.SHARDS[1:]]
        constants = cost_model.fit(grid + small)
        for result in unseen:
            cluster = cost_model.cluster_of(result)
            predicted = cost_model.predict_local(cluster, constants) * 1e3
            rows.append(Row(f"cost model, {cluster.workers} workers, {cluster.shards} shards, {cluster.parameters:,} "
                            "parameters: predicted / measured step", f"{predicted:.2f} ms",
                            f"{result['median_step_ms']:.2f} ms", [predicted / result["median_step_ms"]], "-", True,
                            {"unseen": result, "small": small, "constants": vars(constants)}))
        return rows

    def checkpoints(self):
        """The longest step while a checkpoint is made against the median of the others; a ratio per checkpoint."""
        rows = []
        for compute_ms in scaling.COMPUTE_MS:
            result = scaling.Scaling(self.build).checkpoints(compute_ms)
            ratios = scaling.stall(result)
            longest = statistics.median(max(commit["step_ms"]) for commit in result["commits"])
            rows.append(Row(f"longest step in a checkpoint of {result['parameters']:,} parameters / median step, "
                            f"computing {compute_ms} ms", f"{longest:.0f} ms",
                            f"{statistics.median(result['quiet_step_ms']):.0f} ms", ratios, "<= 1.2",
                            statistics.median(ratios) <= 1.2, result))
        return rows

    def data(self):
        """Images per second from the data service to one local client."""
        with tempfile.TemporaryDirectory() as directory:
            command = [os.path.join(self.bin, "millrace-data"), "--data-dir", self.data_dir, "--listen",
                       f"unix:{directory}/data.sock", "--http-listen", ""]
            with service(command) as (address, _, _):
                results = [run_json([os.path.join(self.bench, "batches_bench"), "--target", address])
                           for _ in range(self.rounds)]
        ratios = [r["service_images_per_second"] / r["memory_images_per_second"] for r in results]
        rate = statistics.median(r["service_images_per_second"] for r in results)
        memory = statistics.median(r["memory_images_per_second"] for r in results)
        return [Row("data service / gather in memory", f"{rate:,.0f} images/s", f"{memory:,.0f} images/s", ratios,
                    ">= 500,000 images/s", rate >= 500_000, {"results": results})]

    def predict(self):
        return serving.Serving(self.build, self.rounds).predict()

    def overload(self):
        return serving.Serving(self.build, self.rounds).overload()

    def reloads(self):
        return serving.Serving(self.build, self.rounds).reloads()


def show(rows):
    table = [("", "measured", "baseline", "ratio (low-high)", "target", "")]
    for row in rows:
        spread = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f}-{max(row.ratios):.2f})"
        table.append((row.name, row.figure, row.baseline, spread, row.target,
                      "" if row.target == "-" else "met" if row.met else "NOT MET"))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["training", "exchange", "leases", "scaling", "checkpoints", "data", "predict", "overload", "reloads"]
    parser.add_argument("--bin", required=True, help="the build directory")
    parser.add_argument("--json", help="also write every figure of every round to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    data_dir = os.environ.get("MILLRACE_DATA_DIR")
    if not data_dir:
        sys.exit("run.py: set MILLRACE_DATA_DIR to a directory with the MNIST files")

    benchmarks = Benchmarks(args.bin, args.rounds, data_dir)
    rows = []
    for name in args.only:
        print(f"measuring {name} ...", file=sys.stderr)
        rows += getattr(benchmarks, name)()
    show(rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump([vars(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
