#!/usr/bin/env python3
"""What asynchrony gives and what it costs: one table of test accuracy and images per second by mode.

Every mode trains the default network for `--epochs` epochs with `--workers` workers, once undisturbed and once with one
worker that is stopped nine tenths of the time. Runs of one mode follow each other, so a change in the machine's speed
meets modes unequally: compare what is next to each other, and look at the accuracy.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

MODES = {
    "synchronous": [],
    "1 backup worker": ["--backup-workers", "1"],
    "staleness 1": ["--staleness", "1"],
    "staleness 4": ["--staleness", "4"],
    "staleness 4, smaller steps": ["--staleness", "4", "--stale-gradients", "smaller-steps"],
    "staleness 4, compensated": ["--staleness", "4", "--stale-gradients", "compensated"],
    "unbounded": ["--staleness", "unbounded"],
    "unbounded, smaller steps": ["--staleness", "unbounded", "--stale-gradients", "smaller-steps"],
}


def worker_of(train_process):
    """The process id of one worker, once there is one."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rsplit(")", 1)
        except OSError:
            continue
        parent = int(fields[1].split()[1])
        if parent == train_process and fields[0].split("(", 1)[1] == "millrace-worker":
            return int(entry)
    return None


def hold_up(train_process, done, period=0.1):
    """Lets one worker run for a tenth of the time until `done` is set."""
    worker = None
    while not done.is_set():
        worker = worker or worker_of(train_process)
        if worker is None:
            done.wait(period)
            continue
        try:
            os.kill(worker, signal.SIGSTOP)
            done.wait(0.9 * period)
            os.kill(worker, signal.SIGCONT)
        except ProcessLookupError:
            worker = None
        done.wait(0.1 * period)


def train(args, flags, delayed):
    with tempfile.TemporaryDirectory() as directory:
        result = os.path.join(directory, "result.json")
        command = [os.path.join(args.bin, "bin", "millrace"), "train", "--data-dir", os.environ["MILLRACE_DATA_DIR"],
                   "--workers", str(args.workers), "--epochs", str(args.epochs), "--no-serving",
                   "--out", os.path.join(directory, "out"), "--json", result, *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done = threading.Event()
        thread = threading.Thread(target=hold_up, args=(process.pid, done))
        if delayed:
            thread.start()
        try:
            code = process.wait(timeout=1800)
        finally:
            done.set()
            if delayed:
                thread.join()
        if code != 0:
            raise RuntimeError(f"{' '.join(command)} exited with {code}")
        with open(result) as file:
            return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="the build directory")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    args = parser.parse_args()
    if not os.environ.get("MILLRACE_DATA_DIR"):
        sys.exit("asynchrony.py: set MILLRACE_DATA_DIR to a directory with the MNIST files")
    print(f"{'':28}{'undisturbed':>26}{'one worker at a tenth':>26}")
    for mode in args.only:
        cells = []
        for delayed in (False, True):
            result = train(args, MODES[mode], delayed)
            cells.append(f"{100 * result['test_accuracy']:.2f} %  {result['images_per_second']:>6,.0f} images/s")
        print(f"{mode:28}{cells[0]:>26}{cells[1]:>26}", flush=True)


if __name__ == "__main__":
    main()
