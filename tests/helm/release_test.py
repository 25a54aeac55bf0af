#!/usr/bin/env python3
"""A release of the chart, as installed: it trains to the end, hot-loads, answers `helm test`, and model pods are rolled out
without losing a request. In real containers of the built images; where those cannot run, loudly, in sandboxes."""

import json
import pathlib
import sys
import threading
import unittest

import chart
import container_pods
import pods
import release

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "deploy"))
import containers  # noqa: E402

SERVICES = ("data", "parameter-server", "worker", "model")
MINIMAL = chart.CHART / "ci" / "minimal-values.yaml"
cluster_class = container_pods.Cluster


class Steps:
    """What happens to a cluster, step by step."""

    def until_ready(self, cluster, *components):
        for component in components:
            for pod in cluster.of(component):
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    release.wait_until(f"{pod.name}'s {probe}", lambda: not pod.running() or pod.probe(probe))
                self.assertTrue(pod.running(), f"{pod.name} ended: {pod.text()}")

    def predict(self, cluster):
        """What `helm test` says."""
        (pod,) = cluster.of("test")
        pod.start()
        self.assertEqual(pod.wait(60), 0, pod.text())
        return pod.text()

    def end_all(self, cluster):
        for component in SERVICES:
            for pod in cluster.of(component):
                self.assertEqual(pod.terminate(), 0, f"{pod.name}: {pod.text()[-2000:]}")


class Release(Steps, unittest.TestCase):
    def test_as_installed(self):
        """The defaults but for the size of the job: versions over gRPC, workers that end with the job. Then an upgrade
        to one more epoch: every pod is another, the output volume is the same."""
        small = {"data": {"replicas": 2}, "worker": {"count": 2}, "model": {"replicas": 2, "drainSeconds": 1}}
        upgrades = [
            chart.render(chart.merged(small, {"job": {"epochs": epochs}}), files=[MINIMAL]) for epochs in (1, 2)
        ]
        with cluster_class(upgrades[0]) as cluster:
            self.train_and_predict(cluster, version=43)
            cluster.upgrade(upgrades[1])
            self.train_and_predict(cluster, version=86)

    def train_and_predict(self, cluster, version):
        cluster.start("model", "worker", "parameter-server", "data")  # in no helpful order
        self.until_ready(cluster, "data", "parameter-server")
        for worker in cluster.of("worker"):
            self.assertEqual(worker.wait(), 0, worker.text())
        self.until_ready(cluster, "model")
        for pod in (*cluster.of("data"), *cluster.of("parameter-server"), *cluster.of("model")):
            pod.check_privileges()
        release.wait_until(
            "the newest version to serve",
            lambda: all(
                f'millrace_model_active_version{{model="mnist"}} {version}\n' in pod.metrics()
                for pod in cluster.of("model")
            ),
        )
        self.assertRegex(self.predict(cluster), rf"digit\.png: \d +\d+\.\d+ % +version {version}")
        self.end_all(cluster)

    def test_a_rollout_under_load_loses_no_request(self):
        """Model pods replaced one after the other, as the Deployment's strategy has it."""
        values = {
            "parameterServer": {"output": {"accessMode": "ReadWriteMany"}},
            # Clients look a name up every two seconds at most, and must have done so before the old pod is gone.
            "model": {"source": "volume", "replicas": 3, "drainSeconds": 6},
        }
        with cluster_class(chart.render(values, files=[MINIMAL])) as cluster:
            cluster.start("data", "parameter-server", "worker")
            old, *new = cluster.of("model")
            old.start()
            self.until_ready(cluster, "data", "parameter-server")
            release.wait_until("a version that serves", lambda: old.probe("readinessProbe"))
            rollout_done, outcomes = threading.Event(), []
            load = threading.Thread(target=self.load, args=(cluster, rollout_done, outcomes))
            load.start()
            try:
                for pod in new:
                    pod.start()  # the surge
                    release.wait_until(f"{pod.name} to be ready", lambda: pod.probe("readinessProbe"))
                    self.assertEqual(old.terminate(), 0, old.text())
                    old = pod
            finally:
                rollout_done.set()
                load.join()
            self.assertEqual([each["failed"] for each in outcomes], [0] * len(outcomes), outcomes)
            self.assertGreater(sum(each["requests"] for each in outcomes), 100)

    def load(self, cluster, end, outcomes):
        """Eight clients at a time, others every five seconds, until `end` and to the end of those five seconds."""
        results = cluster.folder / "load.json"
        target = f"demo-millrace-model.{release.NAMESPACE}.svc.cluster.local:8500"
        while not end.is_set():
            cluster.run_tool(
                "load-test", "--target", target, "--concurrency", 8, "--seconds", 5, "--json", results
            ).wait(60)
            outcomes.append(json.loads(results.read_text()))


if __name__ == "__main__":
    chart.require_tools("helm")
    reason = containers.why_unready()
    if reason is not None:
        print(f"SKIPPED: no real containers, which cannot run here ({reason}): the same command lines run as processes")
        pods.require_sandbox()
        cluster_class = pods.Cluster
    unittest.main()
