"""Runs what the chart renders as pods without a cluster: each container is the real program, with the rendered command
line and environment, in a sandbox of bubblewrap that has what the rendered security context grants (not root, a
read-only root, no capabilities, no new privileges) and the rendered volumes where they are to be mounted. A pod has an
address of its own in 127.0.0.0/8, and finds the others by the names that the cluster's DNS would have, in /etc/hosts.
Only 0.0.0.0 is replaced, by that address.

What a cluster does beyond that and is not done here: scheduling, limits, network policies, ownership of volumes.
"""

import base64
import ipaddress
import itertools
import json
import os
import pathlib
import random
import re
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import chart

PATIENCE_SECONDS = 120


def sandbox_works():
    """Whether bubblewrap is there and may make namespaces; with the reason if not."""
    try:
        done = subprocess.run(
            ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "/bin/true"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode == 0, done.stdout.strip()
    except FileNotFoundError:
        return False, "bubblewrap is not installed"


def require_sandbox():
    """Ends the program unless pods can run: skipped here, failed in CI."""
    works, reason = sandbox_works()
    if not works:
        print(f"SKIPPED: the chart's pods cannot run in sandboxes here: {reason}")
        sys.exit(1 if os.environ.get("CI") == "true" else chart.SKIPPED)


def wait_until(what, condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s for {what}")


class Pod:
    def __init__(self, cluster, name, labels, spec, address):
        self.cluster, self.name, self.labels, self.spec, self.address = cluster, name, labels, spec, address
        (self.container,) = spec["containers"]
        self.process = None
        self.pid = 0  # of the program, outside
        self.log = cluster.folder / f"{name}.log"

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

    def arguments(self, container, environment):
        """With $(VARIABLES) as Kubernetes expands them."""

        def expand(text):
            text = re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], text)
            return text.replace("0.0.0.0", self.address)

        return [expand(each) for each in container["command"] + container.get("args", [])]

    def start(self):
        for container in self.spec.get("initContainers", []):
            self.run(container)
            if self.process.wait(PATIENCE_SECONDS) != 0:
                raise AssertionError(f"{self.name}, {container['name']}: {self.log.read_text()}")
        self.run(self.container)

    def run(self, container):
        environment = self.environment(container)
        security = {**self.spec["securityContext"], **container["securityContext"]}
        assert security["readOnlyRootFilesystem"] and security["capabilities"]["drop"] == ["ALL"]
        command = [
            "bwrap",
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--hostname",
            self.name,
            "--uid",
            str(security["runAsUser"]),
            "--gid",
            str(security["runAsGroup"]),
            "--cap-drop",
            "ALL",
            "--as-pid-1",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
            "--ro-bind",
            "/usr",
            "/usr",
            "--symlink",
            "usr/bin",
            "/bin",
            "--symlink",
            "usr/lib",
            "/lib",
            "--symlink",
            "usr/lib64",
            "/lib64",
            "--dir",
            "/etc",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
        ]
        for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/nsswitch.conf"):
            command += ["--ro-bind-try", path, path]
        command += ["--ro-bind", self.cluster.hosts, "/etc/hosts"]
        for mount in sorted(container["volumeMounts"], key=lambda mount: mount["mountPath"]):
            source = self.cluster.volume(self, mount["name"]) / mount.get("subPath", "")
            command += ["--ro-bind" if mount.get("readOnly") else "--bind", source, mount["mountPath"]]
        for path in {chart.ROOT, pathlib.Path(os.environ["MILLRACE_BIN_DIR"])}:
            command += ["--ro-bind", path, path]
        command += ["--remount-ro", "/", "--setenv", "PATH", os.environ["MILLRACE_BIN_DIR"] + ":/usr/bin"]
        kept = {name: value for name, value in os.environ.items() if name.endswith("SAN_OPTIONS")}
        for name, value in {**kept, **environment}.items():
            command += ["--setenv", name, value]
        read, write = os.pipe()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--info-fd", str(write), *self.arguments(container, environment)],
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
            )
        os.close(write)
        with os.fdopen(read) as info:
            text = info.read()
        if not text:
            raise AssertionError(f"{self.name}: {self.log.read_text()}")
        self.pid = json.loads(text)["child-pid"]

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

    def running(self):
        return self.process is not None and self.process.poll() is None

    def terminate(self):
        """As the kubelet ends a pod: SIGTERM, and SIGKILL when the grace period is over. The exit code."""
        if self.running():
            os.kill(self.pid, signal.SIGTERM)
        try:
            return self.process.wait(self.spec.get("terminationGracePeriodSeconds", 30))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within its grace period") from None

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()


class Relay:
    """A Service's address: every connection goes to one of the pods that it selects and that are ready, in turn."""

    def __init__(self, address, port, pods, target):
        self.pods = pods
        self.turns = itertools.count()
        self.target = target
        self.listener = socket.create_server((address, port))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def connect(self):
        first = next(self.turns) % len(self.pods)
        for pod in self.pods[first:] + self.pods[:first]:
            if pod.running() and pod.probe("readinessProbe"):
                return socket.create_connection((pod.address, pod.port(self.target)), timeout=2)
        raise ConnectionRefusedError("no pod is ready")

    def carry(self, client):
        try:
            server = self.connect()
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    try:
                        data = key.fileobj.recv(1 << 16)
                        if not data:
                            return
                        key.data.sendall(data)
                    except OSError:
                        return

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait in accept, and the port stay taken
        self.listener.close()


class Cluster:
    """All pods of a release. Use it with `with`."""

    def __init__(self, objects, claims=(), secrets=()):
        self.objects = objects
        self.claims = dict(claims)  # existing claims, by name, to directories
        self.secrets = dict(secrets)  # the same
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="millrace-pods-"))
        self.hosts = self.folder / "hosts"
        base = int(ipaddress.IPv4Address("127.64.0.0")) + random.SystemRandom().randrange(1 << 13) * 256
        self.addresses = (str(ipaddress.IPv4Address(base + last)) for last in range(1, 255))
        self.pods = []
        self.relays = []
        for owner, metadata, spec in chart.pods(objects):
            self.add_pods(owner, metadata["labels"], spec)
        self.names = {"localhost": "127.0.0.1"}
        for service in chart.of_kind(objects, "Service"):
            self.add_service(service)
        # gRPC asks for IPv6 addresses too, and waits for a DNS server if the file has none.
        self.hosts.write_text(
            "".join(f"{address} {name}\n::ffff:{address} {name}\n" for name, address in self.names.items())
        )

    def add_pods(self, owner, labels, spec):
        name, kind = owner["metadata"]["name"], owner["kind"]
        count = 1 if kind == "Pod" else owner["spec"].get("completions" if kind == "Job" else "replicas", 1)
        for index in range(count):
            own = dict(labels)
            if kind == "StatefulSet":
                own["apps.kubernetes.io/pod-index"] = str(index)
            self.pods.append(Pod(self, name if kind == "Pod" else f"{name}-{index}", own, spec, next(self.addresses)))

    def add_service(self, service):
        name, namespace, spec = service["metadata"]["name"], "ml", service["spec"]
        domain = f"{name}.{namespace}.svc.cluster.local"
        selected = [pod for pod in self.pods if spec["selector"].items() <= pod.labels.items()]
        if spec.get("clusterIP") == "None":
            self.names.update({f"{pod.name}.{domain}": pod.address for pod in selected})
            return
        self.names[domain] = next(self.addresses)
        for port in spec["ports"]:
            self.relays.append(Relay(self.names[domain], port["port"], selected, port["targetPort"]))

    def volume(self, pod, name):
        """The directory that stands for a volume: a pod's own, or one of the cluster's."""
        (volume,) = [each for each in pod.spec["volumes"] if each["name"] == name]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            folder = self.claims.get(claim, self.folder / "claims" / claim)
        elif "secret" in volume:
            folder = self.secrets[volume["secret"]["secretName"]]
        elif "configMap" in volume:
            folder = self.folder / "configmaps" / volume["configMap"]["name"]
        else:
            folder = self.folder / "pods" / pod.name / name
        folder.mkdir(parents=True, exist_ok=True)
        if "configMap" in volume:
            (config,) = [
                each
                for each in chart.of_kind(self.objects, "ConfigMap")
                if each["metadata"]["name"] == volume["configMap"]["name"]
            ]
            for file, text in config.get("data", {}).items():
                (folder / file).write_text(text)
            for file, text in config.get("binaryData", {}).items():
                (folder / file).write_bytes(base64.b64decode(text))
        return folder

    def of(self, component):
        return [pod for pod in self.pods if pod.labels["app.kubernetes.io/component"] == component]

    def start(self, *components):
        for component in components:
            for pod in self.of(component):
                pod.start()

    def logs(self):
        parts = [f"=== {pod.name}\n{pod.log.read_text()[-3000:]}" for pod in self.pods if pod.log.exists()]
        return "\n".join(parts)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for pod in self.pods:
            if pod.process is not None:
                pod.kill()
        for relay in self.relays:
            relay.close()
        if error is not None:
            print(self.logs())
        subprocess.run(["rm", "-rf", self.folder], check=True)
