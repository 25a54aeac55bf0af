"""A release's pods, whatever they run in: what Kubernetes' controllers would make of what the chart renders, and how a
kubelet asks them."""

import pathlib
import re
import ssl
import subprocess
import tempfile
import time
import urllib.request

import chart

PATIENCE_SECONDS = 120
NAMESPACE = "ml"  # where chart.render installs


def wait_until(what, condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s for {what}")


class Pod:
    """One pod. What runs it adds
    start()         which waits for init containers
    running()       whether its program runs
    text()          what it has printed so far
    wait(seconds)   its exit code once it has ended by itself
    terminate()     as the kubelet ends a pod: SIGTERM, and SIGKILL when the grace period is over. The exit code
    kill()          no trace of it is left
    and sets `address`, and `leaving`.
    """

    def check_privileges(self):
        """Fails if the program may do more than the rendered security context allows, where that can be known."""

    def __init__(self, cluster, name, labels, spec):
        self.cluster, self.name, self.labels, self.spec = cluster, name, labels, spec
        (self.container,) = spec["containers"]
        self.address = None
        self.leaving = False  # it is being terminated: Services choose it no longer

    def environment(self, container):
        values = {}
        for each in container.get("env", []):
            value = each.get("value")
            if value is None:
                path = each["valueFrom"]["fieldRef"]["fieldPath"]
                label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
                value = self.labels[label[1]] if label else {"metadata.name": self.name}[path]
            values[each["name"]] = value
        return values

    def expanded(self, container, text):
        """With $(VARIABLES) as Kubernetes expands them."""
        environment = self.environment(container)
        return re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], text)

    @property
    def grace_seconds(self):
        return self.spec.get("terminationGracePeriodSeconds", 30)

    def port(self, name):
        """The number of the container's port of that name, or None."""
        ports = {each["name"]: each["containerPort"] for each in self.container.get("ports", [])}
        return ports.get(name)

    def get(self, path, port="http", scheme="HTTP"):
        """As a kubelet or a scraper asks, which shows no certificate and looks at none."""
        url = f"{scheme.lower()}://{self.address}:{self.port(port)}{path}"
        with urllib.request.urlopen(url, timeout=5, context=ssl._create_unverified_context()) as answer:
            return answer.read().decode()

    def probe(self, name):
        """Whether the probe of that name succeeds, as the kubelet would find it."""
        try:
            self.get(**self.container[name]["httpGet"])
            return True
        except OSError:
            return False

    def metrics(self):
        return self.get("/metrics")


class Cluster:
    """All pods of a release. Use it with `with`. What runs them adds close(), and run_tool(*arguments): a process of the
    program millrace, with the release's names."""

    pod_class = None

    def __init__(self, objects):
        self.objects = objects
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="millrace-pods-"))
        self.pods = []
        self.add_all()

    def add_all(self):
        for owner, metadata, spec in chart.pods(self.objects):
            self.add_pods(owner, metadata["labels"], spec)

    def add_pods(self, owner, labels, spec):
        name, kind = owner["metadata"]["name"], owner["kind"]
        count = 1 if kind == "Pod" else owner["spec"].get("completions" if kind == "Job" else "replicas", 1)
        for index in range(count):
            own = dict(labels)
            if kind == "StatefulSet":
                own["apps.kubernetes.io/pod-index"] = str(index)
            self.pods.append(self.pod_class(self, name if kind == "Pod" else f"{name}-{index}", own, spec))

    def upgrade(self, objects):
        """Replaces every pod. What claims hold stays."""
        for pod in self.pods:
            pod.kill()
        self.objects, self.pods = objects, []
        self.add_all()

    def services(self):
        """(its name in the cluster's DNS, its spec, the pods that it selects) of every Service."""
        for service in chart.of_kind(self.objects, "Service"):
            spec = service["spec"]
            domain = f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
            yield domain, spec, [pod for pod in self.pods if spec["selector"].items() <= pod.labels.items()]

    def of(self, component):
        return [pod for pod in self.pods if pod.labels["app.kubernetes.io/component"] == component]

    def start(self, *components):
        for component in components:
            for pod in self.of(component):
                pod.start()

    def logs(self):
        return "\n".join(f"=== {pod.name}\n{pod.text()[-3000:]}" for pod in self.pods)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            print(self.logs())
        self.close()
        subprocess.run(["rm", "-rf", self.folder], check=True)
