"""Patches between model versions: ours beside zstd --patch-from, bsdiff, xdelta3, HDiffPatch and whole zstd.

tools/bench delta [--quick] [--only WORD]... [--folder FOLDER] [--no-large] [--minutes N] [--jobs N] [--json FILE]
                  [--results]

The versions are trained here (see `versions`), and those in ../shared/data/models are taken where they are. Every patch
is applied and compared with the new version byte by byte. Sizes are of patch files; times are seconds of CPU in user
mode, of one process for each tool and step and of those that it starts, the start of the interpreter included for ours
and HDiffPatch; making includes that ours applies its patch once. FOLDER keeps the versions and what was measured of
them, but for the file of two gigabytes: a run that was broken off goes on there, unless the codec is another.

--quick trains but the smaller network, for a few steps, and leaves out the file of two gigabytes: two or three minutes,
and figures that say little. The whole begins nothing new after N minutes (120). --results writes ota/delta/RESULTS.md.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ota.delta import container
from ota.delta.files import File
from tools.benchmarks import bounds, delta_report
from tools.benchmarks.delta_report import MB, OURS, WHOLE, Report, Result, Run
from tools.benchmarks.figures import median
from tools.benchmarks.pairs import Pair, large, pairs

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "ota" / "delta" / "RESULTS.md"
ROUNDS = 3  # of a rate
PEERS = "others"


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.role:
        print(_ROLES[options.role[0]](*map(Path, options.role[1:])))
        return 0
    _install_peers()
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as scratch:
        report = _measure(options, Path(scratch))
    print(report.text())
    if options.json:
        options.json.write_text(json.dumps(report.plain(), indent=2) + "\n")
    if options.results:
        RESULTS.write_text(report.markdown())
    return 0 if all(goal.met is not False for goal in report.goals()) else 1


def _measure(options: argparse.Namespace, scratch: Path) -> Report:
    began = time.monotonic()
    end = began + 60 * options.minutes
    kept = options.folder or scratch / "versions"
    kept.mkdir(parents=True, exist_ok=True)
    wanted = list(pairs(kept, options.only, _say, options.quick))
    report = Report([], {name: [] for name in delta_report.DECODERS}, _overhead(scratch), None)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda pair: _compared(pair, kept, scratch) if _is_to_be(pair, end, kept) else None, wanted)
        report.results += [result for result in found if result is not None]
    for result in report.results:
        if result.pair.rated and _is_to_be(result.pair, end, kept, *delta_report.DECODERS):
            for name in delta_report.DECODERS:
                report.rates[name].append(_rate_of(result, kept, scratch, name, 1 if options.quick else ROUNDS))
    if not (options.no_large or options.quick) and time.monotonic() < end:
        report.large = _large(scratch)
    report.left_out = len(wanted) - len(report.results)
    report.only = [*options.only, *(["quick"] if options.quick else [])]
    report.seconds = time.monotonic() - began
    return report


def _is_to_be(pair: Pair, end: float, kept: Path, *what: str) -> bool:
    """Whether there is time to measure it, or no need of any."""
    return time.monotonic() < end or all(_kept(kept, name, pair).exists() for name in what or (OURS, PEERS))


def _kept(kept: Path, what: str, pair: Pair) -> Path:
    """Where it is kept what was measured of a pair: of other tools, of ours or of one of its decoders."""
    codec = "" if what == PEERS else f"-{_codec()}"
    return kept / f"{what}{codec}-{_digest(pair.old)}-{_digest(pair.new)}.json"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench delta", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little training, few pairs: minutes")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="pairs whose name has the word")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="keep versions and what others make of them here")
    parser.add_argument("--no-large", action="store_true", help="leave out the file of two gigabytes")
    parser.add_argument("--minutes", type=float, default=120, metavar="N", help="after which nothing new is begun")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="pairs at once; rates are taken one by one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--results", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}, too")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
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


def _compared(pair: Pair, kept: Path, scratch: Path) -> Result:
    found = _kept(kept, OURS, pair)
    if not found.exists():
        _measure_ours(pair, found, scratch)
    shutil.copyfile(found.with_suffix(".patch"), _patch(pair, OURS, scratch))
    told = json.loads(found.read_text())
    runs = _peers(pair, kept, scratch) | {OURS: Run(**told.pop("run"))}
    result = Result(pair, pair.new.stat().st_size, runs, **told)
    best = runs[result.best].size
    _say(f"{pair.name:<22} ours {runs[OURS].size:>9,}  {result.best} {best:>9,}  {result.ratio:.3f}")
    return result


def _measure_ours(pair: Pair, found: Path, scratch: Path) -> None:
    """Keeps the patch, and beside it, at last, what it took and what is in it."""
    run = _run(OURS, *_ours(pair), pair, scratch)
    patch = _patch(pair, OURS, scratch)
    with File(patch) as written:
        manifest = container.read(written, written.size)
    words = [pair.old, pair.new, *([pair.factors] if pair.factors else [])]
    told = {
        "run": vars(run),
        "envelope": manifest.begin,
        "other_way": manifest.changes[0].way is not container.Way.TENSORS,
        "bounds": json.loads(_asked("bounds", words)),
    }
    shutil.copyfile(patch, found.with_suffix(".patch"))
    found.write_text(json.dumps(told))


@cache
def _codec() -> str:
    """Which one it is: figures of another are of no use."""
    files = sorted(path for path in (ROOT / "ota" / "delta").rglob("*") if path.suffix in (".py", ".c"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _peers(pair: Pair, kept: Path, scratch: Path) -> dict[str, Run]:
    """What the other tools make of the pair; as it was measured before, where the same files are kept."""
    found = _kept(kept, PEERS, pair)
    if not found.exists():
        runs = {name: _run(name, *commands, pair, scratch) for name, commands in TOOLS.items()}
        for name in runs:
            _patch(pair, name, scratch).unlink()
        found.write_text(json.dumps({name: vars(run) for name, run in runs.items()}))
    return {name: Run(**run) for name, run in json.loads(found.read_text()).items()}


def _digest(path: Path) -> str:
    with File(path) as file:
        return file.digest().hex()[:16]


def _run(name: str, make: Command, apply: Command, pair: Pair, scratch: Path) -> Run:
    patch, given = _patch(pair, name, scratch), scratch / f"{pair.name}.given"
    given.unlink(missing_ok=True)
    made, applied = _measured(make(pair.old, pair.new, patch)), _measured(apply(pair.old, given, patch))
    if given.read_bytes() != pair.new.read_bytes():
        raise SystemExit(f"{name} did not give {pair.new} back")
    return Run(patch.stat().st_size, made.cpu_s, applied.cpu_s, made.peak, applied.peak)


def _patch(pair: Pair, name: str, scratch: Path) -> Path:
    return scratch / f"{pair.name}.{name}"


@dataclass(frozen=True)
class _Measured:
    """Seconds by the clock, seconds of CPU in user mode, and the most memory, in bytes."""

    wall_s: float
    cpu_s: float
    peak: int


def _measured(command: Sequence[str | Path]) -> _Measured:
    """In a session of its own: Linux divides a busy processor among sessions, whatever each has to do."""
    words = [shutil.which(str(command[0])) or str(command[0]), *map(str, command[1:])]
    launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *words]
    done = subprocess.run(launched, cwd=ROOT, start_new_session=True, capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr[-500:]}")
    wall, cpu, kilobytes = done.stdout.split()[-3:]
    return _Measured(float(wall), float(cpu), int(kilobytes) * 1024)


# A process begins with the peak of the one that starts it, so that has to be small.
_LAUNCHER = """
import os, sys, time
began = time.perf_counter()
null = os.open(os.devnull, os.O_WRONLY)
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - began, usage.ru_utime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _asked(role: str, words: Sequence[Path], **environment: str) -> str:
    """What this program says in another process, which has that role."""
    command = [sys.executable, "-m", "tools.benchmarks.delta", "--role", role, *map(str, words)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return done.stdout


def _bounds(old: Path, new: Path, factors: Path | None = None) -> str:
    return json.dumps(bounds.of(old, new, factors))


# Rates of applying, on one core


def _rate_of(result: Result, kept: Path, scratch: Path, decoder: str, rounds: int) -> tuple[str, float]:
    """The pair and new megabytes a second of CPU in user mode; starting interpreter and kernel is left out."""
    words = [result.pair.old, _patch(result.pair, OURS, scratch), scratch / "rated"]
    kernel = {"kernel": "", "numpy": "off"}[decoder]
    found = _kept(kept, decoder, result.pair)
    if not found.exists():
        seconds = [float(_asked("rate", words, MILLWRIGHT_DELTA_KERNEL=kernel)) for _ in range(rounds)]
        found.write_text(json.dumps(median(seconds)))
    return result.pair.name, result.new_size / MB / float(json.loads(found.read_text()))


def _rate(old: Path, patch: Path, new: Path) -> float:
    from ota.delta import applying, kernel

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    new.unlink(missing_ok=True)
    kernel.available()
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    applying.apply(old, patch, new)
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - began


_ROLES: dict[str, Callable[..., object]] = {"rate": _rate, "bounds": _bounds}


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
    made, applied = _measured(make(pair.old, pair.new, patch)), _measured(apply(pair.old, given, patch))
    return {
        "patch": patch.stat().st_size,
        "make_cpu_s": made.cpu_s,
        "apply_cpu_s": applied.cpu_s,
        "make_wall_s": made.wall_s,
        "apply_wall_s": applied.wall_s,
        "make_peak": made.peak,
        "apply_above_interpreter": applied.peak - _measured([sys.executable, "-c", "pass"]).peak,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
