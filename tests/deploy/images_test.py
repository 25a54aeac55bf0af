#!/usr/bin/env python3
"""What the images are: one program with its libraries each, not root, no shell, with a health check and labels; and
what their bills of materials say. That they run is tested with the chart and the compose file."""

import functools
import json
import pathlib
import subprocess
import sys
import tarfile
import unittest

import containers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helm"))
import chart  # noqa: E402

TORCH = ("millrace-ps", "millrace-worker", "millrace-model")
SERVICES = ("millrace-data", *TORCH)
PROGRAMS = (*SERVICES, "millrace")
USER = "65532:65532"


@functools.cache
def files(program):
    """{path: tarfile.TarInfo} of all that is in its image."""
    container = containers.podman("create", "--no-healthcheck", containers.image(program)).stdout.strip()
    export = subprocess.Popen(
        ["podman", "export", container], env=containers.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with export, tarfile.open(fileobj=export.stdout, mode="r|") as archive:
        found = {member.name: member for member in archive}
    containers.podman("rm", container)
    return found


class Images(unittest.TestCase):
    def test_are_as_a_cluster_wants_them(self):
        for program in PROGRAMS:
            with self.subTest(program):
                config = containers.inspect("image", containers.image(program))
                self.assertEqual(config["User"], USER)
                self.assertEqual(config["Config"]["Entrypoint"], [program])
                self.assertEqual(config["Config"]["StopSignal"], "SIGTERM")
                self.assertIn("PATH=/usr/bin", config["Config"]["Env"])
                labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
                wanted = {"title", "description", "version", "revision", "licenses", "vendor"}
                self.assertLessEqual(wanted, labels)
                self.assertEqual(config["Labels"]["org.opencontainers.image.title"], program)
                if program in SERVICES:
                    # The exec form: there is no shell.
                    self.assertEqual(config["Healthcheck"]["Test"], ["CMD", program, "--healthcheck"])

    def test_hold_one_program_and_no_shell(self):
        for program in PROGRAMS:
            with self.subTest(program):
                found = files(program)
                programs = {path for path, member in found.items() if path.startswith("usr/bin/") and member.isfile()}
                self.assertEqual(programs, {f"usr/bin/{program}"})
                executable = {
                    path
                    for path, member in found.items()
                    if member.isfile() and member.mode & 0o111 and ".so" not in path
                }
                self.assertEqual(executable, programs)
                self.assertEqual(
                    [path for path, member in found.items() if member.isfile() and member.mode & 0o6000], []
                )
                self.assertIn("etc/ssl/certs/ca-certificates.crt", found)

    def test_share_the_layer_of_libtorch(self):
        layers = [containers.inspect("image", containers.image(program))["RootFS"]["Layers"] for program in TORCH]
        self.assertEqual(len({each[0] for each in layers}), 1)
        for program, each in zip(TORCH, layers):
            size = containers.inspect("image", containers.image(program))["Size"]
            self.assertGreater(size, 300e6)
            self.assertLessEqual(len(each), 3)
        for program in ("millrace-data", "millrace"):
            self.assertLess(containers.inspect("image", containers.image(program))["Size"], 40e6)

    def test_say_that_nobody_answers(self):
        for program in SERVICES:
            with self.subTest(program):
                done = containers.podman(
                    "run", "--rm", "--read-only", containers.image(program), "--healthcheck", check=False
                )
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("does not answer", done.stderr)

    def test_refuse_to_listen_in_plain_text_unasked(self):
        done = containers.podman("run", "--rm", containers.image("millrace-model"), check=False)
        self.assertEqual(done.returncode, 78)
        self.assertIn("--insecure", done.stderr)


class BillsOfMaterials(unittest.TestCase):
    def document(self, program):
        return (containers.FOLDER / "sbom" / f"{program}.cdx.json").read_text()

    def test_are_valid(self):
        for program in PROGRAMS:
            done = subprocess.run(
                [chart.tools_directory() / "venv" / "bin" / "python", "-"],
                input="from cyclonedx.schema import SchemaVersion\n"
                "from cyclonedx.validation.json import JsonStrictValidator\n"
                f"print(JsonStrictValidator(SchemaVersion.V1_5).validate_str({self.document(program)!r}))\n",
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            self.assertEqual(done.stdout, "None\n", program)

    def test_list_every_library_and_its_package(self):
        for program in PROGRAMS:
            with self.subTest(program):
                parts = json.loads(self.document(program))["components"]
                listed = {part["name"].lstrip("/") for part in parts if part["type"] == "file"}
                found = {path for path, member in files(program).items() if member.isfile()}
                code = {path for path in found if path.startswith("usr/") and not path.startswith("usr/share/")}
                self.assertEqual(listed, code)
                packages = {part["name"]: part["version"] for part in parts if part["type"] == "library"}
                self.assertEqual("libtorch1.13" in packages, program in TORCH)
                for name in ("libc6", "libgrpc++1.51", "libssl3"):
                    version = subprocess.run(
                        ["dpkg-query", "-W", "-f", "${Version}", f"{name}:amd64"], stdout=subprocess.PIPE, text=True
                    ).stdout
                    self.assertEqual(packages[name], version)


if __name__ == "__main__":
    containers.require_images()
    unittest.main()
