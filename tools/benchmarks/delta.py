"""Patches between model versions: ours beside zstd --patch-from, bsdiff, xdelta3, HDiffPatch and whole zstd.

tools/bench delta [--only WORD]... [--folder FOLDER] [--no-large] [--json FILE]

The versions are trained here (see `versions`), and those in ../shared/data/models are taken where they are. Every patch
is applied and compared with the new version byte by byte. Sizes are of patch files; times are wall clock and, like peak
memory, of one process for each tool and step, the start of the interpreter included for ours and HDiffPatch. FOLDER
keeps the versions, and finds those it has kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ota.delta import container
from ota.delta.files import File
from tools.benchmarks.figures import Goal, median
from tools.benchmarks.pairs import Pair, large, pairs

ROOT = Path(__file__).parents[2]
OURS, WHOLE = "ours", "zstd whole"
MB = 1e6
ROUNDS = 3  # of a rate


@dataclass
class Run:
    """What one tool did with one pair; bytes, seconds, bytes."""

    size: int
    make_s: float
    apply_s: float
    make_peak: int
    apply_peak: int


@dataclass
class Result:
    pair: Pair
    new_size: int
    runs: dict[str, Run] = field(default_factory=dict)
    envelope: int = 0  # bytes of our header, manifest and index

    @property
    def best(self) -> str:
        return min((name for name in self.runs if name != OURS), key=lambda name: self.runs[name].size)

    @property
    def ratio(self) -> float:
        """What every patch begins with is no part of it: it has a goal of its own."""
        return (self.runs[OURS].size - self.envelope) / self.runs[self.best].size


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.role:
        print(_rate(*map(Path, options.role)))
        return 0
    _install_peers()
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as scratch:
        kept = options.folder or Path(scratch) / "versions"
        kept.mkdir(parents=True, exist_ok=True)
        wanted = list(pairs(kept, options.only, _say))
        results = [_compared(pair, Path(scratch)) for pair in wanted]
        rates = {True: _rates(results, Path(scratch), True), False: _rates(results, Path(scratch), False)}
        overhead = _overhead(Path(scratch))
        big = None if options.no_large else _large(Path(scratch))
    goals = [*_goals(results), *_other_goals(results, rates, overhead, big)]
    _show(results, rates, big, goals)
    if options.json:
        options.json.write_text(json.dumps(_plain(results, rates, overhead, big, goals), indent=2) + "\n")
    return 0 if all(goal.met is not False for goal in goals) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench delta", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="pairs whose name has the word")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="keep the versions here, and find them here")
    parser.add_argument("--no-large", action="store_true", help="leave out the file of two gigabytes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--role", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _install_peers() -> None:
    programs = all(shutil.which(name) for name in ("zstd", "bsdiff", "bspatch", "xdelta3"))
    try:
        import hdiffpatch  # noqa: F401  is it there?
    except ImportError:
        programs = False
    if not programs:
        subprocess.run([ROOT / "tools" / "setup", "deltas"], check=True)


# Tools

Command = Callable[[Path, Path, Path], list[str | Path]]  # of old, new or the place for it, patch

_HDIFF = "import sys, hdiffpatch as h; from pathlib import Path as P; a, b, c = map(P, sys.argv[1:]); "
_HDIFF_MAKE = _HDIFF + "c.write_bytes(h.diff(a.read_bytes(), b.read_bytes(), compression={!r}))"
_HDIFF_APPLY = _HDIFF + "b.write_bytes(h.apply(a.read_bytes(), c.read_bytes()))"


def _hdiff(compression: str) -> tuple[Command, Command]:
    return (
        lambda old, new, patch: [sys.executable, "-c", _HDIFF_MAKE.format(compression), old, new, patch],
        lambda old, new, patch: [sys.executable, "-c", _HDIFF_APPLY, old, new, patch],
    )


TOOLS: dict[str, tuple[Command, Command]] = {
    WHOLE: (
        lambda old, new, patch: ["zstd", "-q", "-f", "-19", "--long=27", new, "-o", patch],
        lambda old, new, patch: ["zstd", "-q", "-f", "-d", "--long=27", patch, "-o", new],
    ),
    "zstd patch": (
        lambda old, new, patch: ["zstd", "-q", "-f", "-19", "--long=27", f"--patch-from={old}", new, "-o", patch],
        lambda old, new, patch: ["zstd", "-q", "-f", "-d", "--long=27", f"--patch-from={old}", patch, "-o", new],
    ),
    "xdelta3": (
        lambda old, new, patch: ["xdelta3", "-e", "-9", "-f", "-B", "536870912", "-s", old, new, patch],
        lambda old, new, patch: ["xdelta3", "-d", "-f", "-B", "536870912", "-s", old, patch, new],
    ),
    "bsdiff": (
        lambda old, new, patch: ["bsdiff", old, new, patch],
        lambda old, new, patch: ["bspatch", old, new, patch],
    ),
    "hdiff zstd": _hdiff("zstd"),
    "hdiff lzma2": _hdiff("lzma2"),
}


def _ours(pair: Pair) -> tuple[Command, Command]:
    base: list[str | Path] = [sys.executable, "-m", "ota.delta"]
    factors: list[str | Path] = ["--factors", pair.factors] if pair.factors else []
    return (
        lambda old, new, patch: [*base, "make", old, new, patch, *factors],
        lambda old, new, patch: [*base, "apply", old, patch, new],
    )


def _compared(pair: Pair, scratch: Path) -> Result:
    result = Result(pair, pair.new.stat().st_size)
    for name, (make, apply) in {**TOOLS, OURS: _ours(pair)}.items():
        patch, given = scratch / f"{pair.name}.{name}", scratch / "given"
        given.unlink(missing_ok=True)
        make_s, make_peak = _measured(make(pair.old, pair.new, patch))
        apply_s, apply_peak = _measured(apply(pair.old, given, patch))
        if given.read_bytes() != pair.new.read_bytes():
            raise SystemExit(f"{name} did not give {pair.new} back")
        result.runs[name] = Run(patch.stat().st_size, make_s, apply_s, make_peak, apply_peak)
        if name != OURS:
            patch.unlink()
    with File(patch) as written:
        result.envelope = container.read(written, written.size).begin
    ours = result.runs[OURS]
    _say(f"{pair.name:<22} ours {ours.size:>9,}  {result.best} {result.runs[result.best].size:>9,}  {result.ratio:.3f}")
    return result


def _measured(command: Sequence[str | Path]) -> tuple[float, int]:
    """Seconds, and the most memory it had, in bytes."""
    words = [shutil.which(str(command[0])) or str(command[0]), *map(str, command[1:])]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *words], check=False, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr[-500:]}")
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), int(kilobytes) * 1024


# A process begins with the peak of the one that starts it, so that has to be small.
_LAUNCHER = """
import os, sys, time
began = time.perf_counter()
null = os.open(os.devnull, os.O_WRONLY)
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - began, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


# Rates of applying, on one core


def _rates(results: Sequence[Result], scratch: Path, kernel: bool) -> dict[str, float]:
    """New megabytes a second by pair, the start of the interpreter left out."""
    found = {}
    environment = {**os.environ, "MILLWRIGHT_DELTA_KERNEL": "" if kernel else "off"}
    for result in results:
        if result.pair.rated:
            words = [str(result.pair.old), str(scratch / f"{result.pair.name}.{OURS}"), str(scratch / "rated")]
            command = [sys.executable, "-m", "tools.benchmarks.delta", "--role", *words]
            seconds = [
                float(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout)
                for _ in range(ROUNDS)
            ]
            found[result.pair.name] = result.new_size / MB / median(seconds)
    return found


def _rate(old: Path, patch: Path, new: Path) -> float:
    from ota.delta import applying

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    new.unlink(missing_ok=True)
    began = time.perf_counter()
    applying.apply(old, patch, new)
    return time.perf_counter() - began


# What a patch costs at least, and a large one


def _overhead(scratch: Path) -> int:
    """Bytes of a patch that changes one byte."""
    data = bytearray(np.random.default_rng(1).bytes(1 << 20))
    old, new, patch = scratch / "one.old", scratch / "one.new", scratch / "one.patch"
    old.write_bytes(data)
    data[1 << 19] ^= 1
    new.write_bytes(data)
    _measured(_ours(Pair("one", old, new))[0](old, new, patch))
    return patch.stat().st_size


def _large(scratch: Path) -> dict[str, float]:
    """Of a model of 2 GB: among other things the memory above that of the bare interpreter."""
    _say("a model of 2 GB")
    pair, patch, given = large(scratch), scratch / "large.patch", scratch / "large.given"
    make, apply = _ours(pair)
    make_s, make_peak = _measured(make(pair.old, pair.new, patch))
    apply_s, apply_peak = _measured(apply(pair.old, given, patch))
    _, bare = _measured([sys.executable, "-c", "pass"])
    return {
        "patch": patch.stat().st_size,
        "make_s": make_s,
        "apply_s": apply_s,
        "make_peak": make_peak,
        "apply_above_interpreter": apply_peak - bare,
    }


# What comes of it


def _goals(results: Sequence[Result]) -> list[Goal]:
    return [
        Goal(f"{result.pair.name}, x best tool", result.pair.bound, result.ratio, at_most=True) for result in results
    ]


def _other_goals(
    results: Sequence[Result], rates: dict[bool, dict[str, float]], overhead: int, large: dict[str, float] | None
) -> list[Goal]:
    above = large["apply_above_interpreter"] / (1 << 20) if large else None
    return [
        Goal("slowest pair, MB/s applied, kernel", 40, min(rates[True].values(), default=None)),
        Goal("slowest pair, MB/s applied, numpy alone", 12, min(rates[False].values(), default=None)),
        Goal("one byte changed, bytes of the patch", 1024, overhead, at_most=True),
        Goal("largest envelope, bytes", 1024, max((result.envelope for result in results), default=None), at_most=True),
        Goal("2 GB model, MiB above the bare interpreter", 64, above, at_most=True),
    ]


def _show(
    results: Sequence[Result],
    rates: dict[bool, dict[str, float]],
    large: dict[str, float] | None,
    goals: Sequence[Goal],
) -> None:
    names = [*TOOLS, OURS]
    print("\nkB of a patch")
    print(f"{'pair':<22} {'new':>8}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>7}")
    for result in results:
        sizes = "".join(f"{result.runs[name].size / 1000:>12,.1f}" for name in names)
        print(f"{result.pair.name:<22} {result.new_size / 1000:>8,.0f}{sizes}{result.ratio:>7.3f}")
    for title, told in (
        ("seconds to make", lambda run: f"{run.make_s:>12.1f}"),
        ("seconds to apply", lambda run: f"{run.apply_s:>12.2f}"),
        ("peak MB making", lambda run: f"{run.make_peak / MB:>12.0f}"),
        ("peak MB applying", lambda run: f"{run.apply_peak / MB:>12.0f}"),
    ):
        print(f"\n{title}\n{'pair':<31}" + "".join(f"{name:>12}" for name in names))
        for result in results:
            print(f"{result.pair.name:<31}" + "".join(told(result.runs[name]) for name in names))
    print(f"\nMB/s applied on one core\n{'pair':<31}{'kernel':>12}{'numpy':>12}")
    for name in rates[True]:
        print(f"{name:<31}{rates[True][name]:>12.1f}{rates[False][name]:>12.1f}")
    if large:
        print("\n2 GB: " + ", ".join(f"{name} {value:,.1f}" for name, value in large.items()))
    print()
    for goal in goals:
        print(goal.line())


def _plain(
    results: Sequence[Result],
    rates: dict[bool, dict[str, float]],
    overhead: int,
    large: dict[str, float] | None,
    goals: Sequence[Goal],
) -> dict[str, Any]:
    return {
        "pairs": {
            result.pair.name: {
                "new": result.new_size,
                "best": result.best,
                "ratio": result.ratio,
                "tools": {name: vars(run) for name, run in result.runs.items()},
            }
            for result in results
        },
        "rates": {"kernel": rates[True], "numpy": rates[False]},
        "overhead": overhead,
        "large": large,
        "goals": [goal.plain() for goal in goals],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
