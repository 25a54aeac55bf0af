"""Runs what the chart renders as pods of real containers from the built images, with `podman kube play`: the rendered
pods with their command lines, environment, security context, memory limits, volumes and ConfigMaps, on a network whose
DNS has the names that the cluster's would have. A Service with an address of its own is one on that network, behind which
this process balances over the pods that are ready. Probes are asked from outside, as a kubelet does.

What Podman 4.3 leaves to this file: it expands no $(VARIABLES), shares an emptyDir between all pods that name one alike,
publishes every port on the machine, and makes probes commands of a shell. What a cluster does beyond that and is not done
here: scheduling, limits of processors, network policies.
"""

import copy
import ctypes
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import yaml

import chart
import release
from relay import Relay

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "deploy"))
import containers  # noqa: E402


class Pod(release.Pod):
    def played(self):
        """The Pod as it is given to Podman."""
        spec = copy.deepcopy(self.spec)
        for container in spec["containers"] + spec.get("initContainers", []):
            container["args"] = [self.expanded(container, each) for each in container.get("args", [])]
            for name in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
                container.pop(name, None)
            for mount in container["volumeMounts"]:
                mount["name"] = self.volume(mount["name"])
        for each in spec["volumes"]:
            each["name"] = self.volume(each["name"])
        spec["restartPolicy"] = "Never"  # it is the test that starts them again
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": self.labels},
            "spec": spec,
        }

    def volume(self, name):
        """The name of a volume: of a pod's own directory, one that no other pod has."""
        (volume,) = [each for each in self.spec["volumes"] if each["name"] == name]
        return f"{self.name}-{name}" if "emptyDir" in volume else name

    @property
    def podman_name(self):
        return f"{self.name}-{self.container['name']}"

    def start(self):
        self.leaving = False
        self.kill()
        path = self.cluster.folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump_all([*chart.of_kind(self.cluster.objects, "ConfigMap"), self.played()]))
        aliases = ",".join(f"alias={name}" for name in self.cluster.names_of(self))
        containers.podman("kube", "play", "--network", f"{self.cluster.network}:{aliases}".rstrip(":"), path)
        self.address = self.cluster.infra(self.name)["NetworkSettings"]["Networks"][self.cluster.network]["IPAddress"]

    def check_privileges(self):
        """That the kernel holds the program to the rendered security context. It must be running."""
        containers.check_confined(self.podman_name, self.spec["securityContext"]["runAsUser"])

    def exists(self):
        return containers.podman("container", "exists", self.podman_name, check=False).returncode == 0

    def state(self):
        return containers.inspect("container", self.podman_name)["State"]

    def running(self):
        return self.exists() and self.state()["Running"]

    def text(self):
        if not self.exists():
            return ""
        done = containers.podman("logs", self.podman_name)
        return done.stdout + done.stderr

    def wait(self, seconds=release.PATIENCE_SECONDS):
        return int(containers.podman("wait", self.podman_name, timeout=seconds).stdout)

    def terminate(self):
        self.leaving = True
        containers.podman("stop", "--time", self.grace_seconds, self.podman_name)
        code = self.state()["ExitCode"]
        if code == 137:
            raise AssertionError(f"{self.name} did not end within its grace period")
        containers.podman("pod", "stop", "--time", "0", self.name)
        self.address = None
        return code

    def kill(self):
        self.address = None
        containers.podman("pod", "rm", "--force", "--time", "0", self.name, check=False)
        own = [self.volume(each["name"]) for each in self.spec["volumes"] if "emptyDir" in each]
        config = [each["configMap"]["name"] for each in self.spec["volumes"] if "configMap" in each]
        containers.podman("volume", "rm", *own, *config, check=False)  # not those that other pods use


def listen_inside(pid, port):
    """A socket that listens on all addresses of another process's network."""
    made = []

    def make():  # in a thread of its own, which alone changes over
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as network:
            if libc.setns(network.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        made.append(socket.create_server(("", port)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class Cluster(release.Cluster):
    pod_class = Pod

    def __init__(self, objects):
        super().__init__(with_test_images(objects))
        self.network = self.folder.name
        self.relays = []
        containers.podman("network", "create", self.network)
        self.connect()

    @staticmethod
    def infra(name):
        """The container whose network is that of a pod of Podman's."""
        return containers.inspect("container", containers.inspect("pod", name)["InfraContainerID"])

    def connect(self):
        """Gives the Services their addresses: each is that of a pod in which nothing runs."""
        for domain, spec, selected in self.services():
            if spec.get("clusterIP") == "None":
                continue
            name = domain.split(".")[0]
            containers.podman("pod", "create", "--name", name, "--network", f"{self.network}:alias={domain}")
            containers.podman("pod", "start", name)
            pid = self.infra(name)["State"]["Pid"]
            self.relays += [
                Relay(listen_inside(pid, port["port"]), selected, port["targetPort"]) for port in spec["ports"]
            ]

    def disconnect(self):
        while self.relays:
            self.relays.pop().close()
        for domain, *_ in self.services():
            containers.podman("pod", "rm", "--force", "--time", "0", domain.split(".")[0], check=False)

    def upgrade(self, objects):
        self.disconnect()
        super().upgrade(with_test_images(objects))
        self.connect()

    def names_of(self, pod):
        """What resolves to the pod alone or among others: of headless Services."""
        for domain, spec, selected in self.services():
            if pod in selected and spec.get("clusterIP") == "None":
                yield from (domain, f"{pod.name}.{domain}")

    def run_tool(self, *arguments):
        self.folder.chmod(0o777)
        command = ["podman", "run", "--rm", "--read-only", "--network", self.network]
        command += ["--volume", f"{self.folder}:{self.folder}", containers.image("millrace"), *map(str, arguments)]
        return subprocess.Popen(command, env=containers.ENVIRONMENT, stdout=subprocess.DEVNULL)

    def close(self):
        self.disconnect()
        for pod in self.pods:
            pod.kill()
        containers.podman("volume", "rm", "--all", "--force")
        containers.podman("network", "rm", "--force", self.network)


def with_test_images(objects):
    """The same objects, of the images that were built for the tests."""
    text = json.dumps(objects)
    version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
    for program in ("millrace-data", "millrace-ps", "millrace-worker", "millrace-model", "millrace"):
        text = text.replace(f'"{program}:{version}"', f'"{containers.image(program)}"')
    return json.loads(text)
