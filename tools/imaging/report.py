"""The image beside plain Debian: both are started here, looked at by the same checkers, and put into one table.

A box is set up and taught an asset, switched off, and started again: that start is the one that is timed and looked at.
"""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.imaging import (
    builder,
    readings,
    releasing,
    report_asking,
    report_checkers,
    report_plain,
    report_table,
)
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places
from tools.imaging.report_figures import read

LONG = 3600.0
CONFIG = "kernel-config.txt"
_PACKED = 'zstd --quiet -T0 -10 --stdout "$1" | wc -c'


def make(where: Places, image: Path) -> str:
    """The table, of the image in this folder. What the machines and the checkers said stays in the cache, under
    `report`. BuilderError, MachineError."""
    tree = report_checkers.make(where)
    plain, ours = _empty(where, "plain"), _empty(where, "ours")
    _look_at_plain(where, tree, plain)
    _look_at_image(where, tree, image, ours)
    _share_config(plain, ours)
    for kept in (plain, ours):
        report_checkers.judge_kernel(where, tree, kept)
    return tell(where, image)


def tell(where: Places, image: Path) -> str:
    """The table again, from what is in the cache."""
    ours, plain = (read(report_asking.texts(_kept(where, name))) for name in ("ours", "plain"))
    return report_table.markdown(ours, plain, f"{image.parent.name} {image.name}")


def _look_at_plain(where: Places, tree: Path, kept: Path) -> None:
    machine = report_checkers.attached(report_plain.machine(where), tree)
    began = time.monotonic()
    with machine.running() as running:
        _up(running)
        _note(kept, "times", {"up": time.monotonic() - began})
        packages = running.check("dpkg-query --show | wc -l").strip()
        _note(kept, "facts", {"packages": packages, "image-bytes": _packed(where, report_plain.make(where))})
        report_checkers.mount(running)
        report_asking.ask(running, kept)


def _look_at_image(where: Places, tree: Path, image: Path, kept: Path) -> None:
    machine = Machine(where, where.trials / "report")
    machine.prepare(releasing.raw_image(image))
    papers = machine.folder / "papers"
    papers.mkdir()
    _set_up(machine, papers)
    manifest = json.loads(next(image.glob("*.manifest")).read_text())["packages"]
    _note(kept, "facts", {"packages": str(len(manifest)), "image-bytes": _packed(where, releasing.raw_image(image))})
    began = time.monotonic()
    with report_checkers.attached(machine, tree).running() as running, ThreadPoolExecutor(1) as outside:
        score = outside.submit(readings.first_score, running, papers, began, LONG)
        _up(running)
        up = time.monotonic() - began
        let_in, judged = score.result()
        _note(kept, "times", {"up": up, "let-in": let_in, "score": judged})
        report_checkers.mount(running)
        report_asking.ask(running, kept, _records(manifest))


def _set_up(machine: Machine, papers: Path) -> None:
    print("image: a first boot", flush=True)
    with machine.running() as running:
        _up(running)
        readings.certify(running, papers)
        readings.teach(running, papers)
        running.shut_down(LONG)


def _up(running: Running) -> None:
    running.wait_probe(LONG)
    running.check("systemctl is-system-running --wait", LONG)


def _records(manifest: list[dict[str, str]]) -> str:
    """As dpkg keeps them: an image has no package manager and no record of its own."""
    return "\n\n".join(
        f"Package: {one['name']}\nStatus: install ok installed\nArchitecture: {one['architecture']}\n"
        f"Version: {one['version']}\nMaintainer: none\nDescription: none"
        for one in manifest
    )


def _share_config(plain: Path, ours: Path) -> None:
    """An image leaves the kernel's configuration out: plain Debian has that of the same kernel. BuilderError."""
    if (ours / CONFIG).read_text().strip():
        return
    if (plain / "kernel-version.txt").read_text() != (ours / "kernel-version.txt").read_text():
        raise builder.BuilderError("image and plain Debian run different kernels: build the image anew")
    (ours / CONFIG).write_text((plain / CONFIG).read_text())


def _packed(where: Places, disk: Path) -> str:
    """Bytes of it, compressed."""
    command = builder.entered(where, ["sh", "-c", _PACKED, "packed", str(disk)])
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _note(kept: Path, name: str, values: dict[str, float] | dict[str, str]) -> None:
    (kept / f"{name}.json").write_text(json.dumps(values))


def _empty(where: Places, name: str) -> Path:
    kept = _kept(where, name)
    kept.mkdir(parents=True, exist_ok=True)
    for path in kept.iterdir():
        path.unlink()
    return kept


def _kept(where: Places, name: str) -> Path:
    return where.cache / "report" / name
