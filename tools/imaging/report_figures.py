"""What the checkers said, read. Pure: their texts come in, figures go out."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OURS, PROBE = "millwright-", "probe.service"  # units
OPENSCAP = "openscap-"  # texts of its profiles
_ADVICE = re.compile(r"^(suggestion|warning)\[\]=([A-Z]+-\d+)\|([^|]*)\|([^|]*)\|", re.MULTILINE)
_RULE = re.compile(r"^\S*content_rule_([\w-]+):(\w+)\s*$", re.MULTILINE)
_LOCAL = re.compile(r"127\.|\[::1\]|\[?fe80|.*%lo\b")


class UnreadError(ValueError):
    """A checker said something else than it does when it comes to its end."""


@dataclass(frozen=True)
class Lynis:
    """`index`: 0 to 100. What it advises: (test, text), its warnings first."""

    version: str
    index: int
    tests: int
    advice: tuple[tuple[str, str], ...]


def lynis(report: str) -> Lynis:
    """Of its report file. UnreadError where it did not come to its end."""
    fields = dict(re.findall(r"^(\w+)=(.*)$", report, re.MULTILINE))
    if "hardening_index" not in fields:
        raise UnreadError("Lynis' report has no hardening index: it did not come to its end")
    found = sorted(_ADVICE.findall(report), key=lambda one: one[0] != "warning")
    tests = fields.get("lynis_tests_done", "0")
    advice = tuple((test, _advice(text, detail)) for _, test, text, detail in found)
    return Lynis(fields.get("lynis_version", "?"), int(fields["hardening_index"]), int(tests), advice)


def _advice(text: str, detail: str) -> str:
    return f"{text.strip()}: {detail}" if detail not in ("", "-") else text.strip()


@dataclass(frozen=True)
class Rules:
    """Of one profile of OpenSCAP: the names of rules by result (pass, fail, notapplicable, notchecked, error ...)."""

    by_result: Mapping[str, tuple[str, ...]]

    def count(self, result: str) -> int:
        return len(self.by_result.get(result, ()))


def rules(progress: str) -> Rules:
    """What `oscap xccdf eval --progress` writes, a rule a line. UnreadError where there is none."""
    found = _RULE.findall(progress)
    if not found:
        raise UnreadError("OpenSCAP told of no rule")
    return Rules(
        {result: tuple(rule for rule, its in found if its == result) for result in sorted({its for _, its in found})}
    )


@dataclass(frozen=True)
class Kernel:
    """Settings that kernel-hardening-checker holds to be right, and that it does not, by kind: kconfig, cmdline,
    sysctl."""

    right: Mapping[str, int]
    wrong: Mapping[str, tuple[str, ...]]


def kernel(text: str) -> Kernel:
    """Its JSON. UnreadError where it is none."""
    right: Counter[str] = Counter()
    wrong: dict[str, tuple[str, ...]] = {}
    for check in _parsed(text):
        kind = str(check["type"])
        if check["check_result_bool"]:
            right[kind] += 1
        else:
            wrong[kind] = (*wrong.get(kind, ()), f"{check['option_name']} (wanted: {check['desired_val']})")
    return Kernel(dict(right), wrong)


def exposures(overview: str) -> dict[str, float]:
    """Of each unit, 0 (locked up) to 10, from the JSON of `systemd-analyze security`."""
    return {str(row["unit"]): float(row["exposure"]) for row in _parsed(overview)}


def _parsed(text: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(text)
    except ValueError as error:
        raise UnreadError(f"instead of JSON a checker wrote: {text[:200]}") from error
    return rows


def memory_in_use(meminfo: str) -> int:
    """Megabytes: all but what is available, from /proc/meminfo."""
    kibibytes = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE)}
    return round((kibibytes["MemTotal"] - kibibytes["MemAvailable"]) * 1024 / 1e6)


def open_ports(listening: str) -> tuple[str, ...]:
    """`tcp 8883` and the like, but for what only the machine itself reaches, from `ss -Hltun`."""
    found = set()
    for line in listening.splitlines():
        words = line.split()
        if len(words) > 4 and not _LOCAL.match(words[4]):
            found.add(f"{words[0]} {words[4].rsplit(':', 1)[1]}")
    return tuple(sorted(found))


def lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class System:
    """All figures of one system; None, or empty, is what was not measured. Times are seconds of the host from power on.

    `facts` are counts and texts that need no reading: bytes of the image, packages, what ran where.
    """

    lynis: Lynis | None
    kernel: Kernel | None
    profiles: Mapping[str, Rules]
    exposures: Mapping[str, float]  # of all units that are loaded, and of all of ours
    running: frozenset[str]  # services
    memory_mb: int | None
    ports: tuple[str, ...] | None
    files: Mapping[str, int]  # setuid, setgid
    times: Mapping[str, float]  # up, let-in, score
    facts: Mapping[str, str]  # image-bytes, packages, kernel, lockdown, time: of the guest's own clock

    @property
    def of_ours(self) -> dict[str, float]:
        return {unit: value for unit, value in sorted(self.exposures.items()) if unit.startswith(OURS)}

    @property
    def mean_exposure(self) -> float | None:
        """Of the services that run, but for the tests' own shell."""
        given = [self.exposures[unit] for unit in self.running - {PROBE} if unit in self.exposures]
        return sum(given) / len(given) if given else None


def read(texts: Mapping[str, str]) -> System:
    """Of what `report_asking` and `report` keep, by name. UnreadError where a text is there and cannot be read."""
    profiles = {name.removeprefix(OPENSCAP): rules(text) for name, text in texts.items() if name.startswith(OPENSCAP)}
    return System(
        lynis=lynis(texts["lynis"]) if "lynis" in texts else None,
        kernel=kernel(texts["kernel-hardening"]) if "kernel-hardening" in texts else None,
        profiles=profiles,
        exposures={**exposures(texts.get("security", "[]")), **_named(texts.get("exposures", ""))},
        running=frozenset(texts.get("running", "").split()),
        memory_mb=memory_in_use(texts["memory"]) if "memory" in texts else None,
        ports=open_ports(texts["ports"]) if "ports" in texts else None,
        files={name: lines(texts[name]) for name in ("setuid", "setgid") if name in texts},
        times=json.loads(texts.get("times", "{}")),
        facts={**json.loads(texts.get("facts", "{}")), **_first_lines(texts, "kernel-version", "lockdown", "time")},
    )


def _named(text: str) -> dict[str, float]:
    """Units and their exposures, one a line."""
    return {unit: float(value) for unit, value in re.findall(r"^(\S+\.service) ([0-9.]+)$", text, re.MULTILINE)}


def _first_lines(texts: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: texts[name].strip().splitlines()[0] for name in names if texts.get(name, "").strip()}
