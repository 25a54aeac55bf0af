#!/usr/bin/env python3
"""deploy/compose.yaml, by podman-compose: comes up, trains, serves and is watched by Prometheus with the rules. Grafana,
whose image is not made here, is looked at only: what it is given fits together."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import yaml

import containers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helm"))
import chart  # noqa: E402
import release  # noqa: E402

DEPLOY = chart.ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = ("data", "ps", "worker", "model")
USER = 65532


def container_path(service, host_path):
    """Where a file or directory beside the compose file is in a service's container."""
    for volume in COMPOSE["services"][service]["volumes"]:
        source, target, *_ = volume.split(":")
        if (DEPLOY / source).resolve() == host_path.resolve():
            return target
    raise AssertionError(f"{service} does not mount {host_path}")


class File(unittest.TestCase):
    def test_asks_for_the_images_of_this_version(self):
        version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
        for service in SERVICES:
            image = COMPOSE["services"][service]["image"]
            self.assertEqual(image, f"${{MILLRACE_IMAGES:-millrace}}-{service}:${{MILLRACE_TAG:-{version}}}")

    def test_publishes_ports_on_this_machine_only(self):
        for service in COMPOSE["services"].values():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_gives_grafana_prometheus_and_the_dashboards(self):
        provisioning = DEPLOY / "compose" / "grafana"
        self.assertEqual(container_path("grafana", provisioning), "/etc/grafana/provisioning")
        (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
        self.assertEqual((source["type"], source["url"]), ("prometheus", "http://prometheus:9090"))
        self.assertTrue(source["isDefault"])  # which the dashboards' variable takes
        (provider,) = yaml.safe_load((provisioning / "dashboards" / "millrace.yaml").read_text())["providers"]
        self.assertEqual(provider["options"]["path"], container_path("grafana", chart.CHART / "files" / "dashboards"))

    def test_gives_prometheus_the_rules(self):
        config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
        rules = container_path("prometheus", DEPLOY / "prometheus" / "rules")
        self.assertEqual(config["rule_files"], [f"{rules}/*.yml"])


def make_prometheus_image(name):
    """Under the name that the compose file has: Debian's Prometheus as upstream's image lays it out."""
    with tempfile.TemporaryDirectory(dir=containers.FOLDER) as folder:
        root = pathlib.Path(folder) / "root"
        program = chart.tool("prometheus")
        found = subprocess.run(["ldd", program], text=True, stdout=subprocess.PIPE).stdout
        for library in re.findall(r"(/\S+) \(0x", found):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])
        (root / "bin").mkdir()
        shutil.copy(program, root / "bin")
        (pathlib.Path(folder) / "empty").mkdir()
        (pathlib.Path(folder) / "Dockerfile").write_text(
            "FROM scratch\nCOPY root /\nCOPY --chown=65534:65534 empty /prometheus\nUSER 65534:65534\n"
            'ENTRYPOINT ["/bin/prometheus"]\n'
            'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]\n'
        )
        containers.podman("build", "--isolation", "chroot", "--tag", name, folder)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Running(unittest.TestCase):
    JOB = {"epochs": "4", "validation_count": "500"}
    LAST_VERSION = 172

    @classmethod
    def setUpClass(cls):
        make_prometheus_image(COMPOSE["services"]["prometheus"]["image"])
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        job = (DEPLOY / "compose" / "job.textproto").read_text()
        for field, value in cls.JOB.items():
            job = re.sub(rf"^{field}: .*$", f"{field}: {value}", job, flags=re.M)
        (cls.folder / "job").write_text(job)
        cls.grpc, cls.prometheus = free_port(), free_port()
        cls.environment = {
            **containers.ENVIRONMENT,
            "MILLRACE_TAG": containers.TAG,
            "MILLRACE_IMAGES": "localhost/millrace",
            "MILLRACE_DATASET": "synthetic:train=6000,test=1000",
            "MILLRACE_JOB_FILE": str(cls.folder / "job"),
            "MILLRACE_GRPC_PORT": str(cls.grpc),
            "MILLRACE_HTTP_PORT": str(free_port()),
            "MILLRACE_PROMETHEUS_PORT": str(cls.prometheus),
        }
        cls.addClassCleanup(cls.compose, "down", "--volumes", "--timeout", "0")
        cls.compose("up", "--detach", "data", "ps", "model", "prometheus")

    @classmethod
    def compose(cls, *arguments):
        done = subprocess.run(
            ["podman-compose", "--project-name", "millrace", "--file", FILE, *arguments],
            env=cls.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # It ends with 0 also when podman did not; down asks for what was not up.
        failed = "up" in arguments and re.search(r"^exit code: [^0]", done.stdout, re.M)
        if done.returncode != 0 or failed:
            raise AssertionError(done.stdout)

    def logs(self, service):
        done = containers.podman("logs", f"millrace_{service}_1")
        return done.stdout + done.stderr

    def ask_prometheus(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def up(self):
        """The services that Prometheus finds to be up."""
        try:
            found = self.ask_prometheus("query?query=up")["result"]
        except OSError:
            return set()
        return {each["metric"]["service"] for each in found if each["value"][1] == "1"}

    def test_trains_serves_is_watched_and_ends_in_time(self):
        # The worker comes last, since it is gone when the job is done.
        release.wait_until("Prometheus to see the services", lambda: self.up() == {"data", "ps", "model"})
        self.compose("up", "--detach", "worker")
        for service in reversed(SERVICES):
            self.check_health(f"millrace_{service}_1")
        release.wait_until("the end of the job", lambda: "job done" in self.logs("ps"))
        last = re.compile(rf"serving a new version .*version={self.LAST_VERSION} ")
        release.wait_until("the last version to serve", lambda: last.search(self.logs("model")))
        program = pathlib.Path(os.environ["MILLRACE_BIN_DIR"]) / "millrace"
        digit = chart.CHART / "files" / "digit.png"
        done = subprocess.run(
            [program, "predict", "--target", f"127.0.0.1:{self.grpc}", digit], text=True, stdout=subprocess.PIPE
        )
        self.assertRegex(done.stdout, rf"digit\.png: \d +\d+\.\d+ % +version {self.LAST_VERSION}")
        groups = self.ask_prometheus("rules")["groups"]
        loaded = {rule["name"] for group in groups for rule in group["rules"]}
        for path in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
            for group in yaml.safe_load(path.read_text())["groups"]:
                self.assertLessEqual({each.get("alert") or each["record"] for each in group["rules"]}, loaded)
        self.end_all()

    def check_health(self, name):
        containers.check_confined(name, USER)
        release.wait_until(
            f"{name} to be healthy",
            lambda: containers.podman("healthcheck", "run", name, check=False).returncode == 0,
        )

    def end_all(self):
        names = [f"millrace_{service}_1" for service in SERVICES]
        containers.podman("stop", "--time", "10", *names)
        for name in names:
            self.assertEqual(containers.inspect("container", name)["State"]["ExitCode"], 0, name)


if __name__ == "__main__":
    chart.require_tools("prometheus")
    containers.require_images()
    unittest.main()
