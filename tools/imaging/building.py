"""Calls mkosi in the builder, then makes of its output what people and boxes are given."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance import __version__
from tools.imaging import application, builder, foreign, keys, places
from tools.imaging.places import Places

MARK = ".made-of"
KEEP = "MILLWRIGHT_IMAGE_KEEP"  # environment: what was built is good enough, whatever it was built of
PROFILES = {  # by name: the profiles of mkosi that it is made with
    "release": ("release",),
    "dev": ("dev",),
    "light": ("release", "light"),
    "light-dev": ("dev", "light"),
}
IMAGE = "millwright"


@dataclass(frozen=True)
class Order:
    """What is to be built. `epoch`: UTC seconds; every time in the image is this one or before."""

    profile: str
    version: str
    epoch: int


def order(profile: str, version: str = "", epoch: int = 0) -> Order:
    """With this tree's version and the time of its last commit, where none is given."""
    return Order(profile, version or __version__, epoch or _committed())


def build(where: Places, what: Order, *, afresh: bool = False) -> Path:
    """The folder with the image; `afresh`: another one, from packages that are installed anew. BuilderError."""
    builder.make(where)
    keys.check(where)
    shutil.copytree(places.TREE / "builder.extra", where.builder, dirs_exist_ok=True)
    _clear_after_a_cut(where)
    print("image: fetching and compiling the application", flush=True)
    tree = application.make(where, what.epoch, light="light" in PROFILES[what.profile])
    output = where.output(f"{what.profile}-again" if afresh else what.profile) / what.version
    shutil.rmtree(output, ignore_errors=True)
    for folder in (output, where.packages, where.workspace, where.installed):
        folder.mkdir(parents=True, exist_ok=True)
    sandbox = _sandbox(where)
    print(f"image: building {what.profile} {what.version}", flush=True)
    environment = {"SOURCE_DATE_EPOCH": str(what.epoch)}
    command = _mkosi(where, what, [tree, _trust(where)], sandbox, output)
    if afresh:
        command = [word.replace("--incremental=yes", "--incremental=no") for word in command]
    _under_way(where).touch()
    with foreign.runs(where):
        builder.run(where, command, where.cache / f"mkosi-{what.profile}.log", network=True, environment=environment)
    _under_way(where).unlink()
    return output


def _under_way(where: Places) -> Path:
    return where.cache / "under-way"


def _clear_after_a_cut(where: Places) -> None:
    """A build that was cut off leaves half of what mkosi keeps of installed packages, and mkosi takes it for whole."""
    if _under_way(where).exists():
        shutil.rmtree(where.installed, ignore_errors=True)
        shutil.rmtree(where.workspace, ignore_errors=True)


def renew(where: Places, what: Order) -> Path:
    """As `build`, but what was built of the same tree and keys is kept. BuilderError."""
    output = where.output(what.profile) / what.version
    mark, digest = output / MARK, _digest(where, what)
    if not (mark.exists() and (os.environ.get(KEEP) or mark.read_text() == digest)):
        build(where, what)
        mark.write_text(digest)
    return output


def _digest(where: Places, what: Order) -> str:
    told = hashlib.sha256((repr(what) + application.identity()).encode())
    made_of = [path for path in places.TREE.rglob("*") if path.is_file() and path.suffix != ".md"]
    for path in sorted([*made_of, *application.LOCKED, *where.keys.iterdir()]):
        told.update(str(path).encode() + b"\0" + path.read_bytes())
    return told.hexdigest()


def _mkosi(where: Places, what: Order, trees: Sequence[Path], sandbox: Path, output: Path) -> list[str]:
    given = {
        "directory": places.TREE,
        "architecture": where.architecture,
        "profile": ",".join(PROFILES[what.profile]),
        "image-version": what.version,
        "source-date-epoch": what.epoch,
        "secure-boot-key": where.keys / "secure-boot.key",
        "secure-boot-certificate": where.keys / "secure-boot.crt",
        "sign-expected-pcr-key": where.keys / "pcr.key",
        "sign-expected-pcr-certificate": where.keys / "pcr.crt",
        "sandbox-tree": sandbox,
        "package-cache-dir": where.packages,
        "workspace-directory": where.workspace,
        "extra-search-path": "/opt/millwright",  # of the builder: programs in place of others
        "incremental": "yes",  # the packages as they were installed; mkosi makes them anew where its tree changed
        "cache-directory": where.installed,
        "output-directory": output,
    }
    options = [f"--{name}={value}" for name, value in given.items()]
    return ["mkosi", *options, *(f"--extra-tree={tree}" for tree in trees), "--force", "build"]


def _trust(where: Places) -> Path:
    """What a box believes from the start: the key its kernels are signed with, and where there is one, the root of the
    repositories of updates."""
    tree = where.cache / "trust"
    shutil.rmtree(tree, ignore_errors=True)
    folder = tree / "usr/share/millwright"
    folder.mkdir(parents=True)
    shutil.copyfile(where.keys / "secure-boot.crt", folder / "secure-boot.pem")
    if (where.keys / "root.json").exists():
        shutil.copyfile(where.keys / "root.json", folder / "root.json")
    return tree


def _sandbox(where: Places) -> Path:
    """Where mkosi's apt looks for packages: this machine's mirror, in no file of the project."""
    folder = where.cache / "sandbox"
    listed = folder / "etc/apt/sources.list.d/mkosi.sources"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(builder.machine_mirror().stanzas())
    return folder


def _committed() -> int:
    command = ["git", "-C", str(places.PROJECT), "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
