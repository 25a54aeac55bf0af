"""The chart as the tests see it: its tools, and what it renders."""

import copy
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "millrace"
SKIPPED = 77  # as ctest is told


@functools.cache
def tools_directory():
    return pathlib.Path(
        subprocess.run(
            [ROOT / "tests" / "install_tools.sh", "--dir"], check=True, text=True, stdout=subprocess.PIPE
        ).stdout.strip()
    )


def require_tools(*names):
    """Ends the program unless all of them are there: skipped here, failed in CI."""
    missing = [name for name in names if not tool(name).exists()]
    if not missing:
        return
    print(f"{sys.argv[0]}: {', '.join(missing)} not installed: run tests/install_tools.sh")
    if os.environ.get("CI") == "true":
        sys.exit(1)
    print("SKIPPED: the chart and the rules are not tested")
    sys.exit(SKIPPED)


def tool(name):
    return tools_directory() / name if name == "schemas" else tools_directory() / "bin" / name


def helm(*arguments):
    """Runs Helm; it never asks a cluster. Returns the finished process."""
    return subprocess.run(
        [tool("helm"), *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def examples():
    return sorted((CHART / "ci").glob("*-values.yaml"))


def template(values=None, files=(), release="demo", namespace="ml"):
    """The finished process of `helm template`, with nested `values` on top of `files`."""
    return _template(json.dumps(values or {}), tuple(files), release, namespace)


@functools.cache
def _template(values, files, release, namespace):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(values)
        file.flush()
        flags = [flag for path in files for flag in ("--values", path)]
        return helm("template", release, CHART, "--namespace", namespace, *flags, "--values", file.name)


def render(values=None, files=(), **names):
    """All objects, hooks among them."""
    done = template(values, files, **names)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return [each for each in yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each]


def of_kind(objects, kind, component=None):
    def wanted(each):
        labels = each["metadata"].get("labels", {})
        return each["kind"] == kind and component in (None, labels.get("app.kubernetes.io/component"))

    return [each for each in objects if wanted(each)]


def jobs(jobset):
    """The Jobs that the controller of JobSets would make of one."""
    for replicated in jobset["spec"]["replicatedJobs"]:
        template_ = replicated["template"]
        for index in range(replicated["replicas"]):
            name = f"{jobset['metadata']['name']}-{replicated['name']}-{index}"
            yield {"kind": "Job", "metadata": {**template_["metadata"], "name": name}, "spec": template_["spec"]}


def pods(objects):
    """(owner, metadata, spec) of every pod or pod template."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each, each["metadata"], each["spec"]
        elif each["kind"] == "JobSet":
            yield from pods(jobs(each))
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            template_ = each["spec"]["template"]
            yield each, template_["metadata"], template_["spec"]


def merged(values, more):
    """`values` with `more` laid over it, as Helm does."""
    result = copy.deepcopy(values)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
