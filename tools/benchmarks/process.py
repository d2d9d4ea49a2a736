"""Processes of a benchmark: started here, ended here by their own id, their CPU and memory read from /proc."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
END_S = 5.0


class Stat(NamedTuple):
    """What we use of /proc/<pid>/stat; `ticks` is user + system time, of ended and awaited children too."""

    pid: int
    parent: int
    ticks: int


def parse_stat(text: str) -> Stat:
    """The program's name stands in parentheses and may hold blanks and parentheses itself."""
    pid, _, rest = text.partition(" ")
    fields = rest[rest.rindex(")") + 2 :].split()
    return Stat(int(pid), int(fields[1]), sum(int(field) for field in fields[11:15]))


def parse_rss(status: str) -> int:
    """KiB of VmRSS in /proc/<pid>/status; 0 for a process that has none (a zombie)."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu_us(pid: int) -> float:
    """User and system microseconds of the process and all below it, so far. Steps of one tick (10 ms, mostly)."""
    return TICK_US * sum(stat.ticks for stat in tree(pid))


def rss_mb(pid: int) -> float:
    """Resident memory of the process and all below it, in MB (10^6 bytes)."""
    return sum(parse_rss(_read(f"{stat.pid}/status")) for stat in tree(pid)) * 1024 / 1e6


def tree(pid: int) -> list[Stat]:
    """The process and all below it."""
    stats = [parse_stat(text) for entry in Path("/proc").glob("[0-9]*") if (text := _read(f"{entry.name}/stat"))]
    return below(pid, stats)


def below(pid: int, stats: Sequence[Stat]) -> list[Stat]:
    found = [stat for stat in stats if stat.pid == pid]
    for member in found:  # grows while it is walked
        found += [stat for stat in stats if stat.parent == member.pid]
    return found


@contextmanager
def running(
    argv: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own, its output in `log`; ended with SIGTERM, after five seconds with SIGKILL."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGTERM)  # the session is ours alone: it holds the child and what it started
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read(name: str) -> str:
    try:
        return Path("/proc", name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
