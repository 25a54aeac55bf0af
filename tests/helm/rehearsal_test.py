#!/usr/bin/env python3
"""The chart's pods on the real programs, in sandboxes: with mutual TLS, fetched files, a shared volume and evictions."""

import functools
import gzip
import http.server
import os
import pathlib
import random
import ssl
import struct
import subprocess
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

import chart
import pods
import release
import release_test


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


def load_model(pod, token):
    """The status of the answer to an operator of the model service with that token."""
    request = urllib.request.Request(
        f"https://{pod.address}:{pod.port('http')}/v2/repository/models/mnist/load",
        method="POST",
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60, context=ssl._create_unverified_context()) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Rehearsal(release_test.Steps, unittest.TestCase):
    def test_with_mutual_tls(self):
        """The Secret that the Certificate asks for is enough for every connection, the probes and `helm test`. The
        worker is of a JobSet; the parts of the run have a token, operators another."""
        values = {
            "job": {"epochs": 1, "validationCount": 500},
            "dataset": {"synthetic": {"train": 3000, "test": 500}},
            "worker": {"mode": "jobset", "count": 1},
            "model": {"replicas": 1, "drainSeconds": 0},
        }
        objects = chart.render(values, files=[chart.CHART / "ci" / "tls-values.yaml"])
        (certificate,) = chart.of_kind(objects, "Certificate")
        with tempfile.TemporaryDirectory() as folder:
            secret = pathlib.Path(folder)
            make_certificates(secret, certificate["spec"]["dnsNames"])
            secrets = {certificate["spec"]["secretName"]: secret}
            for name, key, token in (
                ("operators", "admin", "a-token-of-operators"),
                ("training-run", "token", "a-token-of-this-run"),
            ):
                secrets[name] = secret / name
                secrets[name].mkdir()
                (secrets[name] / key).write_text(token + "\n")
            with pods.Cluster(objects, secrets=secrets) as cluster:
                cluster.start(*release_test.SERVICES)
                self.until_ready(cluster, "data", "parameter-server", "model")
                self.assertRegex(self.predict(cluster), r"digit\.png: \d")
                (model,) = cluster.of("model")
                self.assertEqual(load_model(model, "another-than-operators"), 403)
                self.assertEqual(load_model(model, "a-token-of-operators"), 200)
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
                self.assertIn('"train_samples":60000', cluster.of("data")[0].text())
            server.shutdown()

    def test_with_a_shared_volume(self):
        """Two shards and elastic workers, files from a claim, versions through the volume, measured on the claim's
        test images; a shard and a worker are replaced on the way."""
        values = {
            "dataset": {"kind": "claim", "claim": {"name": "files", "subPath": "tiny"}, "classes": None},
            "job": {"epochs": 15, "validationCount": 100, "checkpointSteps": 4, "slots": 8},
            "worker": {"count": 2},
            "model": {"replicas": 1, "drainSeconds": 0, "canarySet": {"from": "dataset"}},
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
        release.wait_until("a checkpoint", lambda: "checkpoint committed" in first.text())
        for pod in (second, worker):
            self.assertEqual(pod.terminate(), 0, pod.text())
        second.start()
        other.start()
        release.wait_until("the end of the job", lambda: "job done" in first.text())
        self.assertEqual(other.wait(), 0, other.text())
        self.assertIn("millrace_coordinator_recoveries_total 1", first.metrics())
        # Others must not be sent to an address that is only where it listens.
        for pod in cluster.of("parameter-server"):
            self.assertIn(f"{pod.name}.demo-millrace-ps.ml.svc.cluster.local:7200", first.get("/statusz"))
        cluster.start("model")
        self.until_ready(cluster, "data", "parameter-server", "model")
        self.assertRegex(self.predict(cluster), r"digit\.png: \d")
        (model,) = cluster.of("model")
        self.assertIn('millrace_model_canary_score{measure="accuracy",model="mnist"', model.metrics())
        for pod in (model, *cluster.of("parameter-server"), *cluster.of("data")):
            self.assertEqual(pod.terminate(), 0, pod.text()[-2000:])


if __name__ == "__main__":
    chart.require_tools("helm")
    pods.require_sandbox()
    unittest.main()
