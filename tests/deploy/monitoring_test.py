#!/usr/bin/env python3
"""Metrics, rules and dashboards hold together: what README.md lists is what the services have, and every expression
finds data in a real Prometheus that watched a real training and predictions."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helm"))
import chart  # noqa: E402
import pods  # noqa: E402
import release  # noqa: E402

RULES = chart.ROOT / "deploy" / "prometheus" / "rules"
DASHBOARDS = sorted((chart.CHART / "files" / "dashboards").glob("*.json"))
# What finds nothing in the live test, and why.
EXPECTED_EMPTY = {
    "container_cpu_cfs_throttled_periods_total": "the kubelet's; there is no kubelet",
    "container_cpu_cfs_periods_total": "the kubelet's; there is no kubelet",
    "millrace_model_canary_score": "there is no canary set",
    'millrace_model_loads_total{result!="loaded"}': "no version is refused",
    'millrace_model_requests_total{code!~"OK|INVALID_ARGUMENT|NOT_FOUND|OUT_OF_RANGE|CANCELLED"}': "no request fails",
}
SELECTOR = re.compile(r"\b((?:millrace_|grpc_|process_|container_|job:|model:)[a-z0-9_:]+|up)\b(\{[^}]*\})?")


def rules():
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def dashboards():
    return [json.loads(path.read_text()) for path in DASHBOARDS]


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_expressions():
    """(dashboard / panel, expression with Grafana's variables filled in)."""
    for dashboard in dashboards():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                text = target["expr"]
                for variable, value in (
                    ("$__rate_interval", "10s"),
                    ("$cpu_hour_price", "0.04"),
                    ("$job", ".*"),
                    ("$namespace", ".*"),
                ):
                    text = text.replace(variable, value)
                yield f"{dashboard['title']} / {panel['title']}", text


def selectors(expression):
    """Each metric that an expression reads, with its matchers."""
    without_labels = re.sub(r"(by|without|on|ignoring|group_left|group_right) \([^)]*\)", "", expression)
    return {name + (matchers or "") for name, matchers in SELECTOR.findall(without_labels)}


def base_name(series):
    return re.sub(r"_(bucket|sum|count)$", "", series)


def readme_table():
    """{metric: (type, labels)} of README.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", (chart.ROOT / "README.md").read_text(), re.M
    )
    return {name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels, _ in rows}


def exposed(text):
    """The same of a /metrics page."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    labels = {}
    for series, matchers in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        name = series if series in kinds else base_name(series)
        labels.setdefault(name, set()).update(set(re.findall(r'(\w+)="', matchers)) - {"le"})
    return {name: (kinds[name], frozenset(found)) for name, found in labels.items()}


class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        done = subprocess.run(
            [chart.tool("promtool"), *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_are_valid(self):
        self.promtool("check", "rules", *sorted(RULES.glob("*.yml")))

    def test_fire_when_they_should(self):
        self.promtool("test", "rules", chart.ROOT / "tests" / "deploy" / "rules_test.yml")

    def test_every_alert_is_tested_and_says_what_to_do(self):
        tested = (chart.ROOT / "tests" / "deploy" / "rules_test.yml").read_text()
        for rule in rules():
            if "alert" not in rule:
                continue
            self.assertIn(f'"{rule["alert"]}"', tested)
            self.assertEqual(set(rule["annotations"]), {"summary", "description", "runbook"}, rule["alert"])
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))

    def test_are_what_the_chart_installs(self):
        objects = chart.render({"metrics": {"prometheusRule": {"enabled": True}}})
        (installed,) = chart.of_kind(objects, "PrometheusRule")
        self.assertEqual([rule for group in installed["spec"]["groups"] for rule in group["rules"]], list(rules()))


class Dashboards(unittest.TestCase):
    def test_take_any_data_source_and_have_one_identity(self):
        self.assertEqual(len({each["uid"] for each in dashboards()}), len(DASHBOARDS))
        for dashboard in dashboards():
            self.assertNotIn("id", dashboard)
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(set(ids)), len(ids))
            for panel in panels(dashboard):
                for part in (panel, *panel["targets"]):
                    self.assertEqual(part["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])

    def test_panels_do_not_overlap(self):
        for dashboard in dashboards():
            taken = {}
            for panel in dashboard["panels"]:
                at = panel["gridPos"]
                self.assertLessEqual(at["x"] + at["w"], 24)
                for cell in (
                    (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
                ):
                    self.assertNotIn(cell, taken, f"{panel['title']} lies on {taken.get(cell)}")
                    taken[cell] = panel["title"]

    def test_are_what_the_chart_installs(self):
        objects = chart.render({"metrics": {"dashboards": {"enabled": True}}})
        (installed,) = [
            each for each in chart.of_kind(objects, "ConfigMap") if each["metadata"]["name"].endswith("-dashboards")
        ]
        self.assertEqual(installed["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(
            [json.loads(text) for text in installed["data"].values()],
            [json.loads(path.read_text()) for path in DASHBOARDS],
        )

    def test_show_every_metric(self):
        shown = {
            base_name(re.sub(r"\{.*", "", each)) for _, text in dashboard_expressions() for each in selectors(text)
        }
        self.assertEqual(set(readme_table()) - shown, set())


class Prometheus:
    """A real one that scrapes the pods of a cluster every second, as the chart's PodMonitor would have it."""

    def __init__(self, cluster):
        folder = cluster.folder / "prometheus"
        folder.mkdir()
        self.url = f"http://{next(cluster.addresses)}:9090"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "*.yml")],
            "scrape_configs": [
                {
                    "job_name": "millrace",
                    "static_configs": [
                        {
                            "targets": [f"{pod.address}:{pod.port('http')}"],
                            "labels": {"namespace": "ml", "pod": pod.name},
                        }
                        for pod in cluster.pods
                        if pod.port("http")
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = (folder / "log").open("w")
        self.begin = time.time()
        self.process = subprocess.Popen(
            [
                chart.tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        release.wait_until("Prometheus", self.answers)

    def get(self, path, **parameters):
        try:
            with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def answers(self):
        try:
            return bool(self.get("/api/v1/status/buildinfo"))
        except (OSError, AssertionError):
            return False

    def series(self, expression):
        """What it came to at any second since the beginning: [{"metric": labels, "values": [[time, text]]}]."""
        return self.get("/api/v1/query_range", query=expression, start=self.begin, end=time.time(), step=1)["result"]

    def values(self, expression):
        return [float(value) for series in self.series(expression) for _, value in series["values"]]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.log.close()


class Live(unittest.TestCase):
    """One training with two shards, one of which is killed and comes back, and predictions meanwhile."""

    VALUES = {
        "job": {"epochs": 4, "checkpointSteps": 20, "clipNorm": 0.5},
        "dataset": {"synthetic": {"train": 12000}},
        "parameterServer": {"shards": 2, "output": {"accessMode": "ReadWriteMany"}},
        "worker": {"count": 2},
        "model": {"drainSeconds": 0, "requestLog": {"sample": 1}},
    }

    @classmethod
    def setUpClass(cls):
        objects = chart.render(cls.VALUES, files=[chart.CHART / "ci" / "minimal-values.yaml"])
        cls.cluster = pods.Cluster(objects)
        cls.addClassCleanup(cls.cluster.__exit__, None, None, None)
        cls.prometheus = Prometheus(cls.cluster)
        cls.addClassCleanup(cls.prometheus.__exit__)
        cls.pages = []
        try:
            cls.train_and_predict()
        except AssertionError:
            print(cls.cluster.logs())
            raise

    @classmethod
    def train_and_predict(cls):
        first, second = cls.cluster.of("parameter-server")
        (model,) = cls.cluster.of("model")
        cls.cluster.start("data", "parameter-server")
        # So that its counters are seen to go up.
        release.wait_until(
            "Prometheus to see the coordinator twice",
            lambda: cls.prometheus.values("rate(millrace_coordinator_recoveries_total[10s])"),
        )
        cls.cluster.start("worker", "model")
        release.wait_until("a checkpoint", lambda: "checkpoint committed" in first.log.read_text())
        second.kill()
        second.start()
        release.wait_until("a version that serves", lambda: model.probe("readinessProbe"))
        cls.pages += [pod.metrics() for pod in cls.cluster.of("worker")]  # before the job is over, and they with it
        program = pathlib.Path(os.environ["MILLRACE_BIN_DIR"]) / "millrace"
        load = [program, "load-test", "--target", f"{model.address}:8500", "--concurrency", "2", "--seconds", "4"]
        done = subprocess.run(load, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        explain = [program, "explain", "--target", f"{model.address}:8500", "--out-dir", tempfile.gettempdir()]
        explain.append(chart.CHART / "files" / "digit.png")
        done = subprocess.run(explain, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        cls.pages += [pod.metrics() for pod in (*cls.cluster.of("data"), first, second, model)]
        release.wait_until("the end of the job", lambda: "job done" in first.log.read_text())
        cls.pages.append(first.metrics())
        version = re.search(r"^millrace_training_version (\S+)$", first.metrics(), re.M)[1]
        release.wait_until(
            "Prometheus to see the end", lambda: float(version) in cls.prometheus.values("millrace_training_version")
        )

    def has_data(self, expression):
        return any(not math.isnan(value) for value in self.prometheus.values(expression))

    def test_every_expression_of_the_dashboards_finds_data(self):
        empty = [
            f"{where}: {text}"
            for where, text in dashboard_expressions()
            if not self.has_data(text)
            and not any(base_name(re.sub(r"\{.*", "", each)) in EXPECTED_EMPTY for each in selectors(text))
        ]
        self.assertEqual(empty, [])

    def test_every_recording_rule_finds_data(self):
        for rule in rules():
            if "record" in rule:
                self.assertTrue(self.has_data(rule["record"]), rule["record"])

    def test_everything_that_alerts_look_at_is_there_and_none_fires(self):
        for rule in rules():
            if "alert" in rule:
                for each in selectors(rule["expr"]) - set(EXPECTED_EMPTY):
                    self.assertTrue(self.has_data(each), f"{rule['alert']}: {each}")
        self.assertEqual([each["metric"] for each in self.prometheus.series('ALERTS{alertstate="firing"}')], [])

    def test_what_is_expected_to_be_empty_is_empty(self):
        for each, reason in EXPECTED_EMPTY.items():
            self.assertFalse(self.has_data(each), f"{each} has data, although {reason}")

    def test_readme_lists_the_metrics_of_the_services(self):
        found = {}
        for page in self.pages:
            for name, (kind, labels) in exposed(page).items():
                found[name] = (kind, found.get(name, (kind, frozenset()))[1] | labels)
        self.maxDiff = None
        there = {name: row for name, row in readme_table().items() if name not in EXPECTED_EMPTY}
        self.assertEqual(there, found)


if __name__ == "__main__":
    chart.require_tools("helm", "prometheus", "promtool")
    pods.require_sandbox()
    unittest.main()
