"""Runs what the chart renders as pods without a cluster: each container is the real program, with the rendered command
line and environment, in a sandbox of bubblewrap that has what the rendered security context grants (not root, a
read-only root, no capabilities, no new privileges) and the rendered volumes where they are to be mounted. A pod has an
address of its own in 127.0.0.0/8, and finds the others by the names that the cluster's DNS would have, in /etc/hosts.
Only 0.0.0.0 is replaced, by that address.

What a cluster does beyond that and is not done here: scheduling, limits, network policies, ownership of volumes.
"""

import base64
import ipaddress
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys

import chart
import release
from relay import Relay


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


class Pod(release.Pod):
    def __init__(self, cluster, name, labels, spec):
        super().__init__(cluster, name, labels, spec)
        self.address = next(cluster.addresses)
        self.process = None
        self.pid = 0  # of the program, outside
        self.log = cluster.folder / f"{name}.log"

    def arguments(self, container):
        whole = container["command"] + container.get("args", [])
        return [self.expanded(container, each).replace("0.0.0.0", self.address) for each in whole]

    def start(self):
        self.leaving = False
        for container in self.spec.get("initContainers", []):
            self.run(container)
            if self.process.wait(release.PATIENCE_SECONDS) != 0:
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
                [*map(str, command), "--info-fd", str(write), *self.arguments(container)],
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

    def running(self):
        return self.process is not None and self.process.poll() is None

    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds=release.PATIENCE_SECONDS):
        return self.process.wait(seconds)

    def terminate(self):
        self.leaving = True
        if self.running():
            os.kill(self.pid, signal.SIGTERM)
        try:
            return self.process.wait(self.grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within its grace period") from None

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Cluster(release.Cluster):
    pod_class = Pod

    def __init__(self, objects, claims=(), secrets=()):
        self.claims = dict(claims)  # existing claims, by name, to directories
        self.secrets = dict(secrets)  # the same
        base = int(ipaddress.IPv4Address("127.64.0.0")) + random.SystemRandom().randrange(1 << 13) * 256
        self.addresses = (str(ipaddress.IPv4Address(base + last)) for last in range(1, 255))
        super().__init__(objects)
        self.hosts = self.folder / "hosts"
        self.relays = []
        self.connect()

    def connect(self):
        """Gives the Services their addresses."""
        self.names = {"localhost": "127.0.0.1"}
        for domain, spec, selected in self.services():
            self.add_service(domain, spec, selected)
        # gRPC asks for IPv6 addresses too, and waits for a DNS server if the file has none.
        self.hosts.write_text(
            "".join(f"{address} {name}\n::ffff:{address} {name}\n" for name, address in self.names.items())
        )

    def disconnect(self):
        while self.relays:
            self.relays.pop().close()

    def upgrade(self, objects):
        self.disconnect()
        super().upgrade(objects)
        subprocess.run(["rm", "-rf", self.folder / "pods"], check=True)
        self.connect()

    def add_service(self, domain, spec, selected):
        if spec.get("clusterIP") == "None":
            self.names.update({f"{pod.name}.{domain}": pod.address for pod in selected})
            return
        self.names[domain] = next(self.addresses)
        for port in spec["ports"]:
            listener = socket.create_server((self.names[domain], port["port"]))
            self.relays.append(Relay(listener, selected, port["targetPort"]))

    def run_tool(self, *arguments):
        known = [re.sub(r"[^:/]+\.cluster\.local", lambda name: self.names[name[0]], str(each)) for each in arguments]
        program = pathlib.Path(os.environ["MILLRACE_BIN_DIR"]) / "millrace"
        return subprocess.Popen([program, *known], stdout=subprocess.DEVNULL)

    def volume(self, pod, name):
        """The directory that stands for a volume: a pod's own, or one of the cluster's."""
        (volume,) = [each for each in pod.spec["volumes"] if each["name"] == name]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            folder = self.claims.get(claim, self.folder / "claims" / claim)
        elif "secret" in volume:
            folder = self.secret(pod, name, volume["secret"])
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

    def secret(self, pod, name, source):
        """The directory with a Secret's keys, or with those that the volume takes."""
        whole = self.secrets[source["secretName"]]
        if "items" not in source:
            return whole
        folder = self.folder / "pods" / pod.name / name
        folder.mkdir(parents=True, exist_ok=True)
        for item in source["items"]:
            (folder / item["path"]).write_bytes((whole / item["key"]).read_bytes())
        return folder

    def close(self):
        for pod in self.pods:
            pod.kill()
        self.disconnect()
