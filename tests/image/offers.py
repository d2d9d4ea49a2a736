"""Releases of the system in a repository on a stick: made by the publisher's own commands of what was built."""

import os
import shutil
import subprocess
from pathlib import Path

from msgspec.structs import replace

from ota.publish import command
from ota.system import making
from ota.system import release as releases
from ota.system.making import Split
from tests.image.boxes import NEW, OLD
from tools.imaging import keys, releasing
from tools.imaging.places import Places

NAME, BOARD = "millwright-x86-64", "x86-64"
SIGNERS = [f"{role}-{number}" for role in ("targets", "release") for number in (1, 2, 3)]
LEVEL = 3  # of packing: quick


def split(folder: Path) -> Split:
    *roots, kernel = releasing.parts(folder)
    tree = next(path for path in roots if "-verity." in path.name)
    return Split(next(path for path in roots if path != tree), tree, kernel)


def publish(where: Places, workshop: Path, image: Path) -> None:
    folder = where.cache / "test-repository" / "keys"
    signers = [word for name in SIGNERS for word in ("--key", str(folder / name))]
    assert command.main(["add", str(workshop), str(image), "--system", *signers]) == 0


def stick(where: Places, *builds: Path, differences: bool = False) -> Path:
    """A disk with the repository in which these builds are, labelled `updates`; kept while they are the same. With
    `differences` the parts of each are told by those of the builds before it, too."""
    name = "differences" if differences else "updates"
    disk, folder = where.trials / f"{name}.raw", where.trials / name
    if disk.exists() and disk.stat().st_mtime > max(one.stat().st_mtime for one in builds):
        return disk
    os.environ.setdefault(command.PASSPHRASE, keys.PASSPHRASE)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(keys.repository(where).parent, folder / "workshop")
    for number, one in enumerate(builds):
        olds = tuple(split(before) for before in builds[:number]) if differences else ()
        release = making.make(NAME, BOARD, split(one), folder / "out", olds, level=LEVEL)
        publish(where, folder / "workshop", folder / "out" / f"{NAME}-{release.version}.image")
    (folder / "stick").mkdir()
    courier = where.cache / "test-repository" / "keys" / "courier"
    assert command.main(["usb", str(folder / "workshop"), str(folder / "stick"), "--key", str(courier)]) == 0
    as_disk(folder / "stick", disk)
    return disk


def as_disk(folder: Path, disk: Path, label: str = "updates") -> None:
    """An ext4 file system with what is in `folder`, made without mounting."""
    disk.unlink(missing_ok=True)
    subprocess.run(["truncate", "-s", "2G", str(disk)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", label, "-d", str(folder), str(disk)], check=True)


def strange(where: Places, stick: Path) -> Path:
    """A disk with two repositories, without their parts, which nobody gets as far as to fetch: `board`, later than that
    on `stick` and with a release for other boards, 0.9; `stranger`, whose keys no box believes."""
    disk, folder = where.trials / "strange.raw", where.trials / "strange"
    if disk.exists() and disk.stat().st_mtime > stick.stat().st_mtime:
        return disk
    os.environ.setdefault(command.PASSPHRASE, keys.PASSPHRASE)
    shutil.rmtree(folder, ignore_errors=True)
    made = stick.with_name("updates") / "out"
    board = _for_other_boards(made)
    shutil.copytree(stick.with_name("updates") / "workshop", folder / "board")
    publish(where, folder / "board", board)
    init = ["init", str(folder / "stranger"), "--fleet", "trial", "--make-keys", str(folder / "keys")]
    assert command.main(init) == 0
    signers = [word for name in SIGNERS for word in ("--key", str(folder / "keys" / name))]
    assert command.main(["add", str(folder / "stranger"), str(made / f"{NAME}-{NEW}.image"), "--system", *signers]) == 0
    for name, courier in (
        ("board", where.cache / "test-repository" / "keys" / "courier"),
        ("stranger", folder / "keys/courier"),
    ):
        goal = folder / "disk" / name
        goal.mkdir(parents=True)
        assert command.main(["usb", str(folder / name), str(goal), "--key", str(courier)]) == 0
        shutil.rmtree(goal / "millwright/targets/os/parts")
    as_disk(folder / "disk", disk, "strange")
    return disk


def _for_other_boards(made: Path) -> Path:
    release = releases.decode((made / f"{NAME}-{OLD}.image").read_bytes())
    root, kernel, tree = (
        replace(part, file=part.file.replace(OLD, "0.9")) for part in (release.root, release.kernel, release.tree)
    )
    other = replace(release, version="0.9", architecture="arm64", root=root, kernel=kernel, tree=tree)
    file = made / f"{NAME}-0.9.image"
    file.write_bytes(releases.encode(other))
    return file


def root_part(stick: Path) -> tuple[str, int]:
    """Of the new release: where the packed root lies on the stick, and its length."""
    release = releases.decode((stick.with_name("updates") / "out" / f"{NAME}-{NEW}.image").read_bytes())
    way = release.root.ways[0]
    return f"millwright/targets/{way.place}", way.length
