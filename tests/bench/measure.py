"""What every benchmark of run.py yields, and how it runs a program that prints its figures."""
import json
import os
import subprocess
from dataclasses import dataclass, field

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Row:
    """One line of the table; `ratios` has one value per round."""
    name: str
    figure: str
    baseline: str
    ratios: list
    target: str
    met: bool
    details: dict = field(default_factory=dict)


def run_json(command, env=None, timeout=600):
    """The JSON object that `command` prints last."""
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, timeout=timeout, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])
