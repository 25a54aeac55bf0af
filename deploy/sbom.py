#!/usr/bin/env python3
"""What an image consists of, as a CycloneDX 1.5 document: reads the image's root file system as a tar archive on stdin.

    docker export CONTAINER | deploy/sbom.py --name millrace-ps --version 0.1.0 > millrace-ps.cdx.json

Debian's packages are those whose entries deploy/library_closure.sh has left in the image; every library and program in
it is listed with its SHA-256. The same image gives the same document.
"""

import argparse
import email.parser
import hashlib
import json
import sys
import tarfile
import urllib.parse
import uuid

PACKAGES = "var/lib/dpkg/status.d/"
CODE = ("usr/bin/", "usr/lib/", "usr/lib64/", "opt/")


def package(stanza):
    """The component of a package, of its entry in dpkg's database."""
    fields = email.parser.Parser().parsestr(stanza)
    name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
    source = fields.get("Source", name).split()[0]
    purl = f"pkg:deb/debian/{name}@{urllib.parse.quote(version)}?arch={architecture}&distro=debian-12"
    return {
        "type": "library",
        "bom-ref": purl,
        "supplier": {"name": fields["Maintainer"]},
        "name": name,
        "version": version,
        "description": fields["Description"].splitlines()[0],
        "purl": purl,
        "properties": [{"name": "debian:source", "value": source}],
    }


def file(path, content):
    return {
        "type": "file",
        "bom-ref": f"file:/{path}",
        "name": f"/{path}",
        "hashes": [{"alg": "SHA-256", "content": hashlib.file_digest(content, "sha256").hexdigest()}],
    }


def components(archive):
    """Packages, then files, each in the order of their names."""
    packages, files = [], []
    for member in archive:
        path = member.name.removeprefix("./").lstrip("/")
        if not member.isfile():
            continue
        if path.startswith(PACKAGES):
            packages.append(package(archive.extractfile(member).read().decode()))
        elif path.startswith(CODE):
            files.append(file(path, archive.extractfile(member)))
    return sorted(packages, key=lambda each: each["name"]) + sorted(files, key=lambda each: each["name"])


def document(name, version, parts):
    identity = hashlib.sha256(json.dumps([name, version, parts]).encode()).hexdigest()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": name,
                "name": name,
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": parts,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the image")
    parser.add_argument("--version", required=True, help="of the image")
    arguments = parser.parse_args()
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
        parts = components(archive)
    json.dump(document(arguments.name, arguments.version, parts), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
