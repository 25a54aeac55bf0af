#!/usr/bin/env python3
"""The chart's pods on the real programs: what it renders trains to the end, hot-loads and answers `helm test`."""

import functools
import gzip
import http.server
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import threading
import unittest

import chart
import pods


def make_certificates(folder, names):
    """What cert-manager would put into the Secret: ca.crt, and tls.crt with tls.key for these names."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    authority, extensions = folder / "ca.key", folder / "extensions"
    extensions.write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in names) + "\n")
    for command in (
        ["req", "-x509", *key, "-subj", "/CN=ca", "-keyout", authority, "-out", folder / "ca.crt"],
        ["req", *key, "-subj", "/CN=millrace", "-keyout", folder / "tls.key", "-out", folder / "request"],
        [
            "x509",
            "-req",
            "-in",
            folder / "request",
            "-CA",
            folder / "ca.crt",
            "-CAkey",
            authority,
            "-days",
            "2",
            "-CAcreateserial",
            "-extfile",
            extensions,
            "-out",
            folder / "tls.crt",
        ],
    ):
        subprocess.run(
            ["openssl", *map(str, command)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


SERVICES = ("data", "parameter-server", "worker", "model")


def write_idx(folder, train, test):
    """A tiny dataset in MNIST's format: each label is a bright bar at a place of its own."""
    source = random.Random(1)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = bytes(index % 10 for index in range(count))
        images = bytearray(source.randrange(32) for _ in range(count * 784))
        for index, label in enumerate(labels):
            start = index * 784 + (4 + 2 * label) * 28
            images[start : start + 56] = bytes([230]) * 56
        for name, head, body in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">IIII", 0x803, count, 28, 28), images),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">II", 0x801, count), labels),
        ):
            with gzip.open(folder / f"{name}.gz", "wb") as file:
                file.write(head + bytes(body))


class Rehearsal(unittest.TestCase):
    def until_ready(self, cluster, *components):
        for component in components:
            for pod in cluster.of(component):
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    pods.wait_until(f"{pod.name}'s {probe}", lambda: not pod.running() or pod.probe(probe))
                self.assertTrue(pod.running(), f"{pod.name} ended: {pod.log.read_text()}")

    def predict(self, cluster):
        """What `helm test` says."""
        (pod,) = cluster.of("test")
        pod.start()
        self.assertEqual(pod.process.wait(60), 0, pod.log.read_text())
        return pod.log.read_text()

    def end_all(self, cluster):
        for component in SERVICES:
            for pod in cluster.of(component):
                self.assertEqual(pod.terminate(), 0, f"{pod.name}: {pod.log.read_text()[-2000:]}")

    def test_as_installed(self):
        """The defaults but for the size of the job: versions over gRPC, workers that end with the job. Then an upgrade
        to one more epoch."""
        small = {"data": {"replicas": 2}, "worker": {"count": 2}, "model": {"replicas": 2, "drainSeconds": 1}}
        with tempfile.TemporaryDirectory() as folder:
            for epochs in (1, 2):
                objects = chart.render(
                    chart.merged(small, {"job": {"epochs": epochs}}), files=[chart.CHART / "ci" / "minimal-values.yaml"]
                )
                with pods.Cluster(objects, {"demo-millrace-output": pathlib.Path(folder)}) as cluster:
                    self.train_and_predict(cluster, version=43 * epochs)

    def train_and_predict(self, cluster, version):
        cluster.start("model", "worker", "parameter-server", "data")  # in no helpful order
        self.until_ready(cluster, "data", "parameter-server")
        for worker in cluster.of("worker"):
            self.assertEqual(worker.process.wait(pods.PATIENCE_SECONDS), 0, worker.log.read_text())
        self.until_ready(cluster, "model")
        pods.wait_until(
            "the newest version to serve",
            lambda: all(
                f'millrace_model_active_version{{model="mnist"}} {version}\n' in pod.metrics()
                for pod in cluster.of("model")
            ),
        )
        self.assertRegex(self.predict(cluster), rf"digit\.png: \d +\d+\.\d+ % +version {version}")
        self.end_all(cluster)

    def test_a_rollout_under_load_loses_no_request(self):
        """Model pods replaced one after the other, as the Deployment's strategy has it, between two predictions that
        wait for each other in eight threads."""
        values = {
            "parameterServer": {"output": {"accessMode": "ReadWriteMany"}},
            "model": {"source": "volume", "replicas": 3, "drainSeconds": 2},
        }
        objects = chart.render(values, files=[chart.CHART / "ci" / "minimal-values.yaml"])
        with pods.Cluster(objects) as cluster:
            cluster.start("data", "parameter-server", "worker")
            old, *new = cluster.of("model")
            old.start()
            self.until_ready(cluster, "data", "parameter-server")
            pods.wait_until("a version that serves", lambda: old.probe("readinessProbe"))
            address = cluster.names["demo-millrace-model.ml.svc.cluster.local"]
            results = cluster.folder / "load.json"
            program = pathlib.Path(os.environ["MILLRACE_BIN_DIR"]) / "millrace"
            load = subprocess.Popen(
                [
                    program,
                    "load-test",
                    "--target",
                    f"{address}:8500",
                    "--concurrency",
                    "8",
                    "--seconds",
                    "12",
                    "--json",
                    results,
                ],
                stdout=subprocess.DEVNULL,
            )
            for pod in new:
                pod.start()  # the surge
                pods.wait_until(f"{pod.name} to be ready", lambda: pod.probe("readinessProbe"))
                self.assertEqual(old.terminate(), 0, old.log.read_text())
                old = pod
            self.assertIsNone(load.poll(), "the load was over before the rollout")
            load.wait(60)
            outcome = json.loads(results.read_text())
            self.assertEqual(outcome["failed"], 0, outcome)
            self.assertGreater(outcome["requests"], 100)

    def test_with_mutual_tls(self):
        """The Secret that the Certificate asks for is enough for every connection, the probes and `helm test`."""
        values = {
            "job": {"epochs": 1, "validationCount": 500},
            "dataset": {"synthetic": {"train": 3000, "test": 500}},
            "worker": {"count": 1},
            "model": {"replicas": 1, "drainSeconds": 0},
        }
        objects = chart.render(values, files=[chart.CHART / "ci" / "tls-values.yaml"])
        (certificate,) = chart.of_kind(objects, "Certificate")
        with tempfile.TemporaryDirectory() as folder:
            secret = pathlib.Path(folder)
            make_certificates(secret, certificate["spec"]["dnsNames"])
            with pods.Cluster(objects, secrets={certificate["spec"]["secretName"]: secret}) as cluster:
                cluster.start(*SERVICES)
                self.until_ready(cluster, "data", "parameter-server", "model")
                self.assertRegex(self.predict(cluster), r"digit\.png: \d")
                self.end_all(cluster)

    def test_fetches_mnist_before_the_data_service_starts(self):
        source = pathlib.Path(os.environ.get("MILLRACE_DATA_DIR", "/nowhere"))
        if not (source / "train-images-idx3-ubyte.gz").exists():
            self.skipTest("no MNIST: MILLRACE_DATA_DIR is not set")
        handler = functools.partial(QuietFiles, directory=source)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            mirror = f"http://127.0.0.1:{server.server_port}"
            objects = chart.render({"dataset": {"kind": "fetch", "fetch": {"mirrors": [mirror]}}})
            with pods.Cluster(objects) as cluster:
                cluster.start("data")
                self.until_ready(cluster, "data")
                self.assertIn('"train_samples":60000', cluster.of("data")[0].log.read_text())
            server.shutdown()

    def test_with_a_shared_volume(self):
        """Two shards and elastic workers, files from a claim, versions through the volume; a shard and a worker are
        replaced on the way."""
        values = {
            "dataset": {"kind": "claim", "claim": {"name": "files", "subPath": "tiny"}, "classes": None},
            "job": {"epochs": 15, "validationCount": 100, "checkpointSteps": 4, "slots": 8},
            "worker": {"count": 2},
            "model": {"replicas": 1, "drainSeconds": 0},
        }
        with tempfile.TemporaryDirectory() as files:
            (pathlib.Path(files) / "tiny").mkdir()
            write_idx(pathlib.Path(files) / "tiny", train=1500, test=200)
            objects = chart.render(values, files=[chart.CHART / "ci" / "shared-volume-values.yaml"])
            with pods.Cluster(objects, {"files": pathlib.Path(files)}) as cluster:
                self.train_through_evictions(cluster)

    def train_through_evictions(self, cluster):
        worker, other = cluster.of("worker")
        first, second = cluster.of("parameter-server")
        cluster.start("data", "parameter-server")
        worker.start()
        pods.wait_until("a checkpoint", lambda: "checkpoint committed" in first.log.read_text())
        for pod in (second, worker):
            self.assertEqual(pod.terminate(), 0, pod.log.read_text())
        second.start()
        other.start()
        pods.wait_until("the end of the job", lambda: "job done" in first.log.read_text())
        self.assertEqual(other.process.wait(pods.PATIENCE_SECONDS), 0, other.log.read_text())
        self.assertIn("millrace_coordinator_recoveries_total 1", first.metrics())
        # Others must not be sent to an address that is only where it listens.
        for pod in cluster.of("parameter-server"):
            self.assertIn(f"{pod.name}.demo-millrace-ps.ml.svc.cluster.local:7200", first.get("/statusz"))
        cluster.start("model")
        self.until_ready(cluster, "data", "parameter-server", "model")
        self.assertRegex(self.predict(cluster), r"digit\.png: \d")
        for pod in (*cluster.of("model"), *cluster.of("parameter-server"), *cluster.of("data")):
            self.assertEqual(pod.terminate(), 0, pod.log.read_text()[-2000:])


if __name__ == "__main__":
    chart.require_tools("helm")
    pods.require_sandbox()
    unittest.main()
