"""The model service against a bare forward pass, asked for more than it can do, and with versions that change all the
time."""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading

from measure import ONE_THREAD, Row, run_json

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "testing"))
from services import Repository, model_service, service  # noqa: E402

# Overload. A request has so much to compute that what clients and refusals cost of the same cores is small beside it;
# the service has one core, its clients another.
NETWORK, ROWS = "cnn_deep", 16
SERVER_CORE, CLIENT_CORE = ("taskset", "-c", "0"), ("taskset", "-c", "1")
DEADLINE_SECONDS = 0.05
FACTORS = (5, 10)


class Serving:
    def __init__(self, build, rounds):
        self.bench = os.path.join(build, "bench", "predict_bench")
        self.export = os.path.join(build, "tests", "export_version")
        self.program = os.path.join(build, "bin", "millrace-model")
        self.client = os.path.join(build, "bin", "millrace")
        self.rounds = rounds

    def load(self, address, directory, seconds, launcher=(), may_fail=False, **flags):
        """What `millrace load-test` found."""
        result = os.path.join(directory, "load.json")
        command = [*launcher, self.client, "load-test", "--target", address, "--seconds", str(seconds), "--json", result]
        for name, value in flags.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
        with open(result) as file:
            found = json.load(file)
        if found["failed"] > 0 and not may_fail:
            raise RuntimeError(f"requests failed: {found['failures']}")
        return found

    @staticmethod
    def batches(model):
        """Rows and batches computed so far."""
        return tuple(model.metric(f"millrace_model_batch_rows_{what}") for what in ("sum", "count"))

    def predict(self):
        """Latency of Predict, one client, against the bare forward pass; then what many clients get."""
        with tempfile.TemporaryDirectory() as directory:
            bench = [self.bench, "--repository", directory]
            subprocess.run([self.export, directory], check=True)
            with model_service(self.program, directory) as model:
                rows = [self.one_client("TCP", 250, bench, model)] + self.many_clients(bench, model, directory)
                starts = [model.start_seconds]
            with model_service(self.program, directory, listen=f"unix:{directory}/model.sock") as model:
                rows.insert(1, self.one_client("Unix socket", 150, bench, model))
                starts.append(model.start_seconds)
        ready = statistics.median(starts)
        rows.append(Row("model service: start to ready with one version", f"{ready:.2f} s", "-", [1], "<= 1.5 s",
                        ready <= 1.5, {"seconds": starts}))
        return rows

    def one_client(self, name, limit, bench, model):
        results = [run_json(bench + ["--target", model.address]) for _ in range(self.rounds)]
        over = statistics.median(r["predict_p50_us"] - r["bare_p50_us"] for r in results)
        bare = statistics.median(r["bare_p50_us"] for r in results)
        median = statistics.median(r["predict_p50_us"] for r in results)
        return Row(f"Predict p50, one client, {name} / bare forward pass", f"{median:,.0f} us", f"{bare:,.0f} us",
                   [r["predict_p50_us"] / r["bare_p50_us"] for r in results], f"<= bare + {limit} us", over <= limit,
                   {"results": results})

    def many_clients(self, bench, model, directory):
        """64 clients of one row and 8 of 32, whose own processor time comes off the same cores."""
        cores = len(os.sched_getaffinity(0))
        have_python = subprocess.run(["/usr/bin/python3", "-c", "import grpc, google.protobuf, torch"],
                                     stderr=subprocess.DEVNULL).returncode == 0
        if not have_python:
            print("no comparison with Python: python3-grpcio, python3-protobuf or python3-torch is missing",
                  file=sys.stderr)
        singles, costs, shares, pythons, batches, bares = [], [], [], [], [], []
        for _ in range(self.rounds):
            rows, passes, seconds = self.batches(model) + (model.cpu_seconds(),)
            load = self.load(model.address, directory, 5, concurrency=64)
            seconds = model.cpu_seconds() - seconds
            batch = max(1, round((self.batches(model)[0] - rows) / (self.batches(model)[1] - passes)))
            forward = run_json(bench + ["--bare", str(batch)], ONE_THREAD)["cpu_seconds_per_row"]
            singles.append(load["rate"])
            costs.append(seconds / load["requests"] - forward)
            shares.append(costs[-1] / forward)
            batches.append(32 * self.load(model.address, directory, 5, concurrency=8, rows=32)["rate"])
            bares.append(run_json(bench + ["--bare", "32", "--threads", str(cores)], ONE_THREAD)["rows_per_second"])
            if have_python:
                pythons.append(self.python_rate(directory))
        cost = statistics.median(costs) * 1e6
        ratios = [a / b for a, b in zip(batches, bares)]
        rows = [Row("Predict, 64 clients: server CPU beyond the forward pass / in it", f"{cost:,.0f} us",
                    f"{cost / statistics.median(shares):,.0f} us", shares, "<= 60 us", cost <= 60, {"seconds": costs}),
                Row(f"Predict, 32 rows, 8 clients / forward passes of 32 on {cores} cores",
                    f"{statistics.median(batches):,.0f} rows/s", f"{statistics.median(bares):,.0f} rows/s", ratios,
                    ">= 0.7", statistics.median(ratios) >= 0.7, {"served": batches, "bare": bares})]
        if pythons:
            ratios = [a / b for a, b in zip(singles, pythons)]
            rows.insert(0, Row("Predict, 64 clients / the same from Python", f"{statistics.median(singles):,.0f} requests/s",
                               f"{statistics.median(pythons):,.0f} requests/s", ratios, ">= 4",
                               statistics.median(ratios) >= 4, {"served": singles, "python": pythons}))
        return rows

    def python_rate(self, directory):
        """Requests per second that 64 clients get of a server in Python."""
        command = ["/usr/bin/python3", HERE / "predict_server.py", "--version-dir", f"{directory}/mnist/1"]
        with service(command) as (address, _, _):
            return self.load(address, directory, 5, concurrency=64)["rate"]

    def overload(self):
        """What still comes in time when many times more is asked than can be done."""
        figures = {factor: [] for factor in FACTORS}
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([self.export, directory, "--network", NETWORK], check=True)
            with model_service(self.program, directory, launcher=SERVER_CORE) as model:
                before = self.capacity(model, directory)
                for _ in range(self.rounds):
                    for factor in FACTORS:
                        asked = self.asked(factor, before, model, directory)
                        after = self.capacity(model, directory)
                        # The machine's speed changes within seconds.
                        figures[factor].append({**asked, "capacity": (before + after) / 2})
                        before = after
                expired = model.metric("millrace_model_expired_rows_executed_total")
        rows = []
        for factor in FACTORS:
            results = figures[factor]
            ratios = [r["goodput"] / r["capacity"] for r in results]
            good, capacity, p99, late = (statistics.median(r[key] for r in results)
                                         for key in ("goodput", "capacity", "p99_ms", "late"))
            rows.append(Row(f"requests of {ROWS} rows in time at {factor} x capacity / capacity", f"{good:,.0f} requests/s",
                            f"{capacity:,.0f} requests/s", ratios, ">= 0.9", statistics.median(ratios) >= 0.9,
                            {"results": results}))
            rows.append(Row(f"  p99 of admitted ones / deadline ({late:.2%} of them late, {expired:.0f} rows computed late)",
                            f"{p99:.0f} ms", f"{DEADLINE_SECONDS * 1e3:.0f} ms",
                            [r["p99_ms"] / DEADLINE_SECONDS / 1e3 for r in results], "<= 1",
                            p99 <= DEADLINE_SECONDS * 1e3 and late <= 0.01 and expired == 0, {"results": results}))
        return rows

    def capacity(self, model, directory):
        """Requests per second that are answered if each client waits for its answer."""
        return self.load(model.address, directory, 5, CLIENT_CORE, rows=ROWS)["rate"]

    def asked(self, factor, capacity, model, directory):
        def admitted():
            return model.metric("millrace_model_requests_total") - model.metric("millrace_model_rejected_total")

        before = admitted()
        load = self.load(model.address, directory, 5, CLIENT_CORE, may_fail=True, rows=ROWS, rate=factor * capacity,
                         concurrency=512, timeout_seconds=DEADLINE_SECONDS)
        good = load["requests"] - load["failed"]
        return {**load, "goodput": good / 5, "late": 1 - good / max(admitted() - before, 1)}

    def reloads(self):
        """The slowest requests while a version a second is replaced, against those of a quiet service, at half of what it
        can do."""
        quiet, busy, failed, loads = [], [], 0, 0
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([self.export, directory], check=True)
            repository = Repository(directory)
            with model_service(self.program, directory, "--poll-interval-ms", "50") as model:
                for _ in range(self.rounds):
                    half = self.load(model.address, directory, 3)["rate"] / 2
                    quiet.append(self.load(model.address, directory, 10, rate=half)["p99_ms"])
                    before = model.metric("millrace_model_loads_total", result="loaded")
                    with publishing(repository, seconds=1):
                        load = self.load(model.address, directory, 10, may_fail=True, rate=half)
                    busy.append(load["p99_ms"])
                    failed += load["failed"]
                    loads += model.metric("millrace_model_loads_total", result="loaded") - before
        ratios = [b / q for b, q in zip(busy, quiet)]
        return [Row(f"Predict p99 with a reload per second / without, half of capacity ({loads:.0f} reloads, {failed} failed)",
                    f"{statistics.median(busy):.2f} ms", f"{statistics.median(quiet):.2f} ms", ratios, "<= 1.25",
                    statistics.median(ratios) <= 1.25 and failed == 0, {"quiet": quiet, "busy": busy})]


class publishing:
    """While entered, a new version appears every so many seconds."""

    def __init__(self, repository, seconds):
        self._repository, self._seconds = repository, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.wait(self._seconds):
            self._repository.publish()
