#!/usr/bin/env python3
"""Podman as the tests see it: with storage, networks and settings of its own below the build directory, so that nothing
of this machine's is touched and all of it can be removed.

    containers.py setup      builds the images from MILLRACE_BIN_DIR, once for all tests
    containers.py cleanup    removes containers, networks, images
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = 77  # as ctest is told
TAG = "test"
FOLDER = pathlib.Path(os.environ["MILLRACE_BIN_DIR"]).parent / "containers"
ENVIRONMENT = {
    **os.environ,
    "CONTAINERS_CONF": str(FOLDER / "containers.conf"),
    "CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"),
    "TMPDIR": str(FOLDER / "tmp"),
}
UNREADY = FOLDER / "unready"  # why there are no images

CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{folder}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE_CONF = """
[storage]
driver = "{driver}"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def podman(*arguments, check=True, **options):
    """The finished process; its output is text."""
    done = subprocess.run(
        ["podman", *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"podman {' '.join(map(str, arguments))}: {done.stderr}")
    return done


def inspect(kind, name):
    answer = json.loads(podman(kind, "inspect", name).stdout)
    return answer[0] if isinstance(answer, list) else answer  # a pod is not a list of one


def check_confined(name, user):
    """That the kernel holds a running container's program to a user, a read-only root, and no privileges."""
    process = pathlib.Path(f"/proc/{inspect('container', name)['State']['Pid']}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert set(status["Uid"].split()) == {str(user)}, f"{name} runs as {status['Uid']}"
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, f"{name} has capabilities"
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", f"{name} is not confined"
    (root,) = [line.split() for line in (process / "mounts").read_text().splitlines() if line.split()[1] == "/"]
    assert "ro" in root[3].split(","), f"{name} could write to its root"


def image(program):
    return f"{program}:{TAG}"


def storage_driver():
    """overlay where the kernel can stack one on this directory; vfs copies every layer, which takes minutes."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        for name in ("lower", "upper", "work", "merged"):
            (pathlib.Path(folder) / name).mkdir()
        mount = "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged"
        done = subprocess.run(["unshare", "--mount", "sh", "-c", mount], cwd=folder, stderr=subprocess.DEVNULL)
    return "overlay" if done.returncode == 0 else "vfs"


def missing_tools():
    missing = [tool for tool in ("podman", "runc", "conmon", "catatonit") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed: run deploy/install_deps.sh --tests" if missing else None


def why_none_run():
    """Tries the smallest image there is: a program without libraries, on a network. None if it runs."""
    probe = f"localhost/probe:{TAG}"
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        shutil.copy(shutil.which("catatonit"), folder)
        (pathlib.Path(folder) / "Dockerfile").write_text("FROM scratch\nCOPY catatonit /catatonit\n")
        done = podman("build", "--isolation", "chroot", "--tag", probe, folder, check=False)
    if done.returncode == 0:
        done = podman("network", "create", "probe", check=False)
    if done.returncode == 0:
        done = podman("run", "--rm", "--read-only", "--network", "probe", probe, "/catatonit", "--version", check=False)
    podman("network", "rm", "--force", "probe", check=False)
    podman("image", "rm", "--force", probe, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def set_up():
    """Nothing, or why containers cannot run here."""
    if os.geteuid() != 0:
        return "not root"
    for name in ("tmp", "networks"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / "containers.conf").write_text(CONTAINERS_CONF.format(folder=FOLDER))
    (FOLDER / "storage.conf").write_text(STORAGE_CONF.format(folder=FOLDER, driver=storage_driver()))
    reason = why_none_run()
    if reason is not None:
        return reason
    build = [ROOT / "deploy" / "build_images.sh", "--bin", os.environ["MILLRACE_BIN_DIR"], "--tag", TAG]
    done = subprocess.run([*build, "--sbom", FOLDER / "sbom"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise AssertionError("the images were not built")
    (FOLDER / "sizes").write_text(done.stdout)
    print(done.stdout)
    podman("run", "--rm", "--read-only", image("millrace"), "--version")
    return None


def clean_up():
    if not (FOLDER / "storage.conf").exists():
        return
    podman("pod", "rm", "--all", "--force", check=False)
    podman("rm", "--all", "--force", "--time", "0", check=False)
    podman("volume", "rm", "--all", "--force", check=False)
    podman("network", "prune", "--force", check=False)
    podman("image", "rm", "--all", "--force", check=False)
    subprocess.run(["umount", FOLDER / "storage" / "overlay"], stderr=subprocess.DEVNULL)
    shutil.rmtree(FOLDER)


def why_unready():
    """Why there are no images that run; None if there are."""
    if UNREADY.exists():
        return UNREADY.read_text()
    return None if (FOLDER / "sizes").exists() else "the images were not built: run ctest, or containers.py setup"


def require_images():
    """Ends the program unless the images are there and run."""
    reason = why_unready()
    if reason is not None:
        print(f"SKIPPED: containers cannot run here: {reason}")
        sys.exit(SKIPPED)


def main():
    if sys.argv[1:] not in (["setup"], ["cleanup"]):
        sys.exit(__doc__)
    clean_up()
    if sys.argv[1] == "cleanup":
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = missing_tools()
    reason = missing or set_up()
    if reason is not None:
        UNREADY.write_text(reason)
        print(f"SKIPPED: containers cannot run here: {reason}")  # and so say the tests, each
        sys.exit(1 if missing and os.environ.get("CI") == "true" else 0)


if __name__ == "__main__":
    main()
