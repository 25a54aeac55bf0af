#!/usr/bin/env python3
"""Version after version under load: no request fails, and no memory is lost. The same program with a leak put in it is
found to have one, so that the test is known to find it. ctest's `reload_soak` has few reloads; with more:

    ctest --preset release -R reload_soak -N -V    prints the command, to which --reloads 10000 can be added
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "testing"))
from services import Repository, model_service  # noqa: E402

WARM_UP = 20  # reloads until allocators and caches have their size
# A version of the network that is exported here holds 2.8 MB of weights, and more once it is frozen and warm.
BYTES_PER_RELOAD_MAX = 256 << 10


def slope(samples):
    """By least squares, of (x, y) pairs."""
    xs, ys = zip(*samples)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / sum((x - mean_x) ** 2 for x in xs)


class Load:
    """Predictions without pause until it is left; `requests` and `failed` of them."""

    def __init__(self, client, address, directory):
        self.requests = self.failed = 0
        self._command = [client, "load-test", "--target", address, "--rate", "100", "--seconds", "1", "--json"]
        self._result = pathlib.Path(directory) / "load.json"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.is_set():
            self._result.unlink(missing_ok=True)
            subprocess.run([*self._command, self._result], stdout=subprocess.DEVNULL)
            found = json.loads(self._result.read_text()) if self._result.exists() else {"requests": 0, "failed": 1}
            self.requests += found["requests"]
            self.failed += found["failed"]


def wait_for(model, version):
    deadline = time.monotonic() + 60
    while model.metric("millrace_model_active_version") != version:
        if time.monotonic() > deadline:
            raise RuntimeError(f"version {version} never served")
        time.sleep(0.005)


def reload_under_load(program, client, export, reloads):
    """(requests, failed requests, bytes of resident memory per reload)"""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([export, directory], check=True)
        repository = Repository(directory)
        samples = []
        with model_service(program, directory, "--poll-interval-ms", "10") as model:
            with Load(client, model.address, directory) as load:
                for reload in range(reloads):
                    wait_for(model, repository.publish())
                    if reload >= WARM_UP:
                        samples.append((reload, model.resident_bytes()))
                    if reload % 500 == 499:
                        print(f"{reload + 1} reloads: {slope(samples) / 1024:,.1f} KiB each", file=sys.stderr)
            return load.requests, load.failed, slope(samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--leaky-program", required=True)
    parser.add_argument("--client", required=True, help="millrace")
    parser.add_argument("--export-program", required=True)
    parser.add_argument("--reloads", type=int, default=50)
    args = parser.parse_args()

    requests, failed, growth = reload_under_load(args.program, args.client, args.export_program, args.reloads)
    print(f"{args.reloads} reloads, {requests:,} requests, {failed} failed, {growth / 1024:,.1f} KiB per reload")
    if requests == 0 or failed > 0:
        sys.exit("a reload is not to fail a request")
    if growth > BYTES_PER_RELOAD_MAX:
        sys.exit(f"memory is lost: the limit is {BYTES_PER_RELOAD_MAX / 1024:,.0f} KiB per reload")
    _, _, growth = reload_under_load(args.leaky_program, args.client, args.export_program, WARM_UP + 10)
    print(f"with a leak: {growth / 1024:,.1f} KiB per reload")
    if growth <= BYTES_PER_RELOAD_MAX:
        sys.exit("a leak of every version was not found")


if __name__ == "__main__":
    main()
