"""The builder: a small trixie system in a folder, in which the image is made and tried. Made once, then kept.

Nothing of the machine's own system takes part but its kernel, so that every machine builds the same image. It is
entered by pivot_root: mkosi makes namespaces of its own, which a chroot forbids.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.imaging import places, sources
from tools.imaging.places import Places

PACKAGES = {  # by the image's architecture
    places.X86: (places.TREE / "builder.packages",),
    places.ARM: (places.TREE / "builder.packages", places.TREE / "builder.arm64.packages"),
}
MARK = "etc/millwright-builder"
ENTER = """set -eu
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")"; [ -e "$root$1" ] || : >"$root$1"; fi
    mount --rbind "$1" "$root$1"
    shift
done
shift
cd "$root"
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec "$@"
"""
_FROM_OUTSIDE = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs")  # for package registries' ordinary clients


class BuilderError(Exception):
    """What could not be made, and why."""


def make(where: Places) -> None:
    """Unless it is there and its recipe did not change. Another call that makes it is waited for. BuilderError."""
    if os.geteuid() != 0:
        raise BuilderError("making the image wants root: it mounts and makes namespaces. Call it with sudo.")
    where.cache.mkdir(parents=True, exist_ok=True)
    with where.builder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make(where)


def _make(where: Places) -> None:
    recipe = _recipe(where.architecture)
    mark = where.builder / MARK
    if mark.exists() and mark.read_text() == recipe:
        return
    print("image: making the builder, a trixie system of its own (3 minutes, 1.2 GB)", flush=True)
    new = where.builder.with_suffix(".new")
    debian(where, new, "apt", packages(where.architecture))
    (new / MARK).write_text(recipe)
    shutil.rmtree(where.builder, ignore_errors=True)
    new.rename(where.builder)


def debian(where: Places, folder: Path, variant: str, packages: Sequence[str]) -> None:
    """The release of the image with these packages, in a folder; `variant` is mmdebstrap's. BuilderError."""
    if shutil.which("mmdebstrap") is None:
        raise BuilderError("mmdebstrap is missing: apt-get install mmdebstrap debian-archive-keyring")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    listed = where.cache / "trixie.sources"
    listed.write_text(machine_mirror().stanzas())
    chosen = f"--include={','.join(packages)}"
    foreign = [] if where.architecture == places.X86 else [f"--architectures=amd64,{where.architecture}"]
    command = ["mmdebstrap", f"--variant={variant}", *foreign, chosen, sources.RELEASE, str(folder), str(listed)]
    _logged(command, where.cache / f"{folder.stem}.log")


def machine_mirror() -> sources.Mirror:
    """BuilderError where this machine's apt sources name none."""
    apt = Path("/etc/apt")
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.sources"))]
    files += sorted((apt / "sources.list.d").glob("*.list"))
    try:
        return sources.mirror(file.read_text() for file in files if file.exists())
    except sources.NoSourcesError as error:
        raise BuilderError(f"{error}: the image is made of packages from where this machine's come from") from error


def entered(where: Places, command: Sequence[str], *, network: bool = False) -> list[str]:
    """The command line that runs `command` inside. Cache, keys and project are there under their own paths."""
    shared = [where.cache, places.PROJECT, *([where.keys] if where.keys.exists() else [])]
    paths = [str(path) for path in shared]
    if network:
        paths += [path for path in (*_FROM_OUTSIDE, *_pip_files()) if Path(path).exists()]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    bound = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10"]  # nothing of it outlives us
    return [*bound, *namespaces, "sh", "-c", ENTER, "enter", str(where.builder), *paths, "--", *command]


def run(
    where: Places,
    command: Sequence[str],
    log: Path,
    *,
    network: bool = False,
    environment: Mapping[str, str] | None = None,
) -> None:
    """BuilderError, with the last lines of the log."""
    kept = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    kept |= {name: value for name, value in os.environ.items() if network and name.startswith("PIP_")}
    _logged(entered(where, command, network=network), log, {**kept, **(environment or {})})


def _logged(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if code:
        last = "\n".join(log.read_text("utf-8", "replace").splitlines()[-25:])
        raise BuilderError(f"{last}\nthe builder ended with code {code}; all it said is in {log}")


def packages(architecture: str) -> list[str]:
    """Of the builder for an image of `architecture`."""
    lines = [line for path in PACKAGES[architecture] for line in path.read_text().splitlines()]
    names = [name for line in lines if not line.startswith("#") for name in line.split()]
    return [name for name in names if f"{name}:{architecture}" not in names]


def _recipe(architecture: str) -> str:
    return hashlib.sha256("\n".join((sources.RELEASE, *packages(architecture))).encode()).hexdigest() + "\n"


def _pip_files() -> list[str]:
    """pip's own settings of this machine: mirrors, certificates."""
    return [str(path) for path in (Path("/etc/pip.conf"), Path.home() / ".config" / "pip" / "pip.conf")]
