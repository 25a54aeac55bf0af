"""Trains every built-in network on MNIST and prints what came of it, next to what it must reach.

  /usr/bin/python3 tests/bench/networks.py [--bin build/release/bin] [--workers N] [--only NAME ...] [--json FILE]

Needs MNIST (MILLRACE_DATA_DIR). Takes about half an hour on two cores, most of it cnn_deep; the seeds are fixed, so a
machine with the same LibTorch and instruction set prints the same figures but for the seconds.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# By network: flags beside --model, and the figure to reach: accuracy on the test images (at least) or the mean squared
# error of a pixel in [0, 1] (at most).
NETWORKS = {
    "cnn": (["--epochs", "10"], 0.985),
    "mlp": (["--epochs", "10"], None),
    "lenet5": (["--epochs", "10"], None),
    "rnn": (["--epochs", "10", "--learning-rate", "0.003", "--schedule", "one-cycle"], 0.985),
    "autoencoder": (["--epochs", "10", "--learning-rate", "0.002", "--schedule", "one-cycle"], 0.010),
    "cnn_deep": (["--epochs", "30", "--optimizer", "adamw", "--learning-rate", "0.003", "--schedule", "one-cycle",
                  "--augment", "shift=3,rotate=15,scale=0.15", "--validation-count", "1000"], 0.996),
}


def train(binary, name, flags, workers, directory):
    result = pathlib.Path(directory) / f"{name}.json"
    command = [str(binary / "millrace"), "train", "--model", name, "--workers", str(workers), "--seed", "1",
               "--data-dir", os.environ["MILLRACE_DATA_DIR"], "--out", str(pathlib.Path(directory) / name),
               "--json", str(result), *flags]
    print(" ".join(["millrace", "train", "--model", name, *flags]), file=sys.stderr)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(result.read_text())


def row(name, target, result):
    if result["test_accuracy"] is None:
        figure, met = f"error {result['test_loss']:.5f}", target is None or result["test_loss"] <= target
        served = f"{result['served']['error']:.5f}"
        wanted = "-" if target is None else f"<= {target:.3f}"
    else:
        figure, met = f"{100 * result['test_accuracy']:.2f} %", target is None or result["test_accuracy"] >= target
        served = f"{100 * result['served']['accuracy']:.2f} %"
        wanted = "-" if target is None else f">= {100 * target:.1f} %"
    verdict = "" if target is None else "met" if met else "NOT MET"
    return (f"{name:<12} {figure:<14} {served:<9} {wanted:<10} {verdict:<8} {result['epochs']:>3} epochs "
            f"{result['images_per_second']:>9,.0f} images/s {result['wall_seconds']:>7.0f} s  "
            f"{result['weights_sha256'][:12]}"), met


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    if "MILLRACE_DATA_DIR" not in os.environ:
        sys.exit("networks.py: set MILLRACE_DATA_DIR to the directory with MNIST")
    results, all_met = {}, True
    with tempfile.TemporaryDirectory(prefix="millrace-networks-") as directory:
        print(f"{'network':<12} {'test':<14} {'served':<9} {'wanted':<10}", flush=True)
        for name in arguments.only:
            flags, target = NETWORKS[name]
            results[name] = train(arguments.bin, name, flags, arguments.workers, directory)
            line, met = row(name, target, results[name])
            print(line, flush=True)
            all_met = all_met and met
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(0 if all_met else 1)


if __name__ == "__main__":
    main()
