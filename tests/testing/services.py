"""Real services for tests and benchmarks in Python: started, looked at, given new versions, ended."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.request
from dataclasses import dataclass


@dataclass
class ModelService:
    address: str
    http: str
    pid: int
    start_seconds: float = 0  # until it was ready

    def get(self, path):
        """The body of a good answer, else None."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def metric(self, name, **labels):
        """The sum of a metric's series with these labels."""
        total = 0.0
        for series, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self.get("/metrics"), re.M):
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', series)).items():
                total += float(value)
        return total

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        return int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def service(command):
    """Starts a service, yields its gRPC and HTTP addresses and its process id, ends it."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        match = re.search(r"LISTENING grpc=(\S+)(?: http=(\S+))?", process.stdout.readline())
        if not match:
            raise RuntimeError(f"{command[0]} did not start")
        yield match.group(1), match.group(2), process.pid
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def model_service(program, repository, *flags, listen="127.0.0.1:0", launcher=()):
    """Starts a model service, waits until it serves, yields its ModelService, ends it."""
    begin = time.monotonic()
    command = [*launcher, program, "--repository", repository, "--listen", listen, "--http-listen", "127.0.0.1:0",
               "--drain-seconds", "0", *flags]
    with service(command) as (address, http, pid):
        model = ModelService(address, http, pid)
        while model.get("/readyz") is None:
            if time.monotonic() > begin + 60:
                raise RuntimeError(f"{program} did not become ready")
            time.sleep(0.005)
        model.start_seconds = time.monotonic() - begin
        yield model


class Repository:
    """A directory with the versions of a model "mnist", of which there is one already."""

    def __init__(self, directory):
        self.versions = pathlib.Path(directory) / "mnist"
        self.newest = max(int(path.name) for path in self.versions.iterdir() if path.name.isdigit())

    def publish(self):
        """Publishes the newest version's network once more, under the next number, and removes the one before."""
        newest, following = self.versions / str(self.newest), self.versions / str(self.newest + 1)
        unfinished = self.versions / f".{following.name}.unfinished"
        shutil.copytree(newest, unfinished)
        manifest = json.loads((unfinished / "manifest.json").read_text())
        manifest["version"] = self.newest + 1
        (unfinished / "manifest.json").write_text(json.dumps(manifest))
        unfinished.rename(following)
        self.newest += 1
        before = self.versions / str(self.newest - 2)
        if before.exists():
            shutil.rmtree(before)
        return self.newest
