"""The vault beside systemd-creds and age: opening, getting, putting, kills survived; and the masking of personal data.

tools/bench vault [--rounds N] [--kills N] [--json FILE]

A peer is a program that is started for each secret, so ours is measured twice: asked over the socket of the vault that
runs, as a service asks, and as the command `millwright vault`, which starts an interpreter. Opening is what the vault
does once at its start; peers open anew each time. Kills: a process that overwrites eight secrets in turn is killed at a
random moment, then all eight must be read, none older than what was acknowledged. That is a process's death, not a
power cut, which also takes what is not on the disk yet: see tests/faults for those. Masking: texts of people and of
machines that the benchmark makes up.
"""

import argparse
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import MillwrightError
from appliance.masking.finding import find
from appliance.vault import chest, client
from appliance.vault.backends import fingerprint, plain
from appliance.vault.port import Backend
from appliance.vault.secret import Secret
from tests import boxes
from tools.benchmarks.figures import Goal, median
from tools.benchmarks.people import Sample, machines, people

ROOT = Path(__file__).parents[2]
ROUNDS, KILLS, SECRETS = 15, 60, 8
VALUE = b"a password of a plant's broker, 48 bytes or so"
SUITE = "aes-256-gcm"
PATIENCE_S = 30.0
TEXTS = 20_000

Act = Callable[[], object]


class Kept(Protocol):
    """A way to keep secrets, for the kills. `line` overwrites them in turn and tells each one it has done."""

    @property
    def name(self) -> str: ...

    def command(self, folder: Path) -> list[str]: ...

    def read(self, folder: Path, number: int) -> bytes | None:
        """None: it does not open."""


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["--overwrite"]:
        return _overwrite(Path(argv[1]))
    options = _options(argv)
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        folder = Path(name)
        result: dict[str, Any] = {"latency_ms": _latency(folder, options.rounds)}
        keepers: list[Kept] = [Ours(), *_peers(folder)]
        result["kills"] = {kept.name: _kills(kept, folder, options.kills) for kept in keepers}
        result["masking"] = _masking()
    goals = _goals(result)
    _show(result, goals)
    if options.json:
        options.json.write_text(json.dumps({**result, "goals": [goal.plain() for goal in goals]}, indent=2) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench vault", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contestant (%(default)s)")
    parser.add_argument("--kills", type=int, default=KILLS, help="kills of each contestant (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser.parse_args(argv)


# ---- latency --------------------------------------------------------------------------------------------------------


def _latency(folder: Path, rounds: int) -> dict[str, float]:
    with _service(folder / "box") as (socket, command):
        ours = client.by_socket(socket)
        acts: dict[str, Act] = {
            "get: over the socket": lambda: ours.get("bench/one"),
            "put: over the socket": lambda: ours.put("bench/one", Secret(VALUE)),
            "get: as a command": lambda: _run([*command, "vault", "get", "bench/one"]),
            "put: as a command": lambda: _run([*command, "vault", "put", "bench/one"], VALUE),
            **{f"open: {name}": act for name, act in _openings(folder)},
        }
        for peer in _peers(folder):
            acts |= peer.acts(folder)
        return _turns(acts, rounds)


def _turns(acts: dict[str, Act], rounds: int) -> dict[str, float]:
    """Medians in ms; contestants take turns, so that a busy moment of the machine is shared."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(rounds + 1):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if number:  # the first turn reads programs from the disk
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: median(values) for name, values in times.items()}


@contextmanager
def _service(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A vault that runs, and the command that asks it."""
    folder.mkdir()
    config = folder / "millwright.toml"
    config.write_text(f'[paths]\nstate = "{folder}/s"\nrun = "{folder}/r"\n[vault]\nbackend = "plain"\n')
    command = [sys.executable, "-m", "appliance", "--config", str(config)]
    _run([*command, "vault", "init", "--recovery-file", str(folder / "recovery")])
    service = subprocess.Popen(
        [*command, "run", "broker", "vault"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        socket = folder / "r" / "vault.sock"
        _wait_for(lambda: client.answers(socket), service)
        client.by_socket(socket).put("bench/one", Secret(VALUE))
        yield socket, command
    finally:
        service.terminate()
        service.wait(PATIENCE_S)


def _wait_for(there: Callable[[], bool], service: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        if service.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("tools/bench vault: the vault did not start")
        time.sleep(0.01)


def _open(where: Path, backend: Callable[[], Backend]) -> None:
    chest.open(where, [backend()], None, time.time_ns).close()


def _openings(folder: Path) -> Iterator[tuple[str, Act]]:
    """The vault of a modelled mini PC, bound to its fingerprint; and one bound to nothing, for what the file costs."""
    boxes.box("mini_pc", folder / "mini")

    def by_fingerprint() -> Backend:
        return fingerprint.create(fingerprint.Settings(), boxes.at(folder / "mini"))

    def by_plain() -> Backend:
        return plain.create(plain.Settings(), boxes.at(folder / "mini"))

    for name, backend in (("fingerprint", by_fingerprint), ("bound to nothing", by_plain)):
        where = folder / f"open-{name}"
        made, _ = chest.create(where, backend(), SUITE, [], None, time.time_ns)
        made.put("bench/one", Secret(VALUE))
        made.close()
        yield name, functools.partial(_open, where, backend)


def _run(command: Sequence[str], given: bytes = b"") -> bytes:
    return subprocess.run(command, input=given, cwd=ROOT, capture_output=True, check=True).stdout


# ---- peers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """Encrypts from standard input into a file, and back: one secret a file."""

    name: str
    seal: tuple[str, ...]  # {} stands for the file
    open: tuple[str, ...]

    def acts(self, folder: Path) -> dict[str, Act]:
        file = str(folder / f"{self.name}.secret")
        seal, open_ = _filled(self.seal, file), _filled(self.open, file)
        return {f"put: {self.name}": lambda: _run(seal, VALUE), f"get: {self.name}": lambda: _run(open_)}

    def command(self, folder: Path) -> list[str]:
        """A shell that overwrites the files in turn, as a script of a user's does."""
        seal = " ".join(self.seal).replace("{}", f"{folder}/$((n % {SECRETS}))")
        return ["sh", "-c", f"n=0; while :; do printf '%08d' $n | {seal} && echo $n; n=$((n + 1)); done"]

    def read(self, folder: Path, number: int) -> bytes | None:
        done = subprocess.run(_filled(self.open, str(folder / str(number))), capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None


def _filled(words: Sequence[str], file: str) -> list[str]:
    return [word.replace("{}", file) for word in words]


def _peers(folder: Path) -> list[Program]:
    """Those that are installed; the others are named as absent."""
    found = []
    if shutil.which("age"):
        key = folder / "age.key"
        if not key.exists():
            subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True)
        recipient = _run(["age-keygen", "-y", str(key)]).decode().strip()
        found.append(Program("age", ("age", "-r", recipient, "-o", "{}"), ("age", "-d", "-i", str(key), "{}")))
    if shutil.which("systemd-creds") and os.geteuid() == 0:
        # Under the host's key: a TPM that the machine lacks cannot be asked.
        seal = ("systemd-creds", "--with-key=host", "--name=one", "encrypt", "-", "{}")
        found.append(Program("systemd-creds", seal, ("systemd-creds", "--name=one", "decrypt", "{}", "-")))
    return found


# ---- kills ----------------------------------------------------------------------------------------------------------


class Ours:
    name = "ours"

    def command(self, folder: Path) -> list[str]:
        return [sys.executable, "-m", "tools.benchmarks.vault", "--overwrite", str(folder)]

    def read(self, folder: Path, number: int) -> bytes | None:
        with _own(folder) as opened:
            return opened.get(f"bench/{number}").reveal()


@contextmanager
def _own(folder: Path) -> "Iterator[chest.Chest]":
    backend = plain.create(plain.Settings(), boxes.at(folder))
    if not chest.exists(folder / "vault"):
        chest.create(folder / "vault", backend, SUITE, [], None, time.time_ns)[0].close()
    opened = chest.open(folder / "vault", [backend], None, time.time_ns)
    try:
        yield opened
    finally:
        opened.close()


def _overwrite(folder: Path) -> int:
    with _own(folder) as opened:
        number = 0
        while True:
            opened.put(f"bench/{number % SECRETS}", Secret(b"%08d" % number))
            print(number, flush=True)
            number += 1


def _kills(kept: Kept, parent: Path, kills: int) -> dict[str, int]:
    """How many secrets were lost: they do not open, or are older than what was acknowledged."""
    dice, folder = random.Random(kills), parent / f"kills-{kept.name}"
    folder.mkdir()
    lost = acknowledged = lock_outs = 0
    for _ in range(kills):
        newest = _killed(kept.command(folder), dice.uniform(0.0, 0.05))
        acknowledged += newest + 1
        try:
            lost += sum(
                _is_lost(kept.read(folder, number), number, newest) for number in range(min(newest + 1, SECRETS))
            )
        except (MillwrightError, OSError):
            lock_outs += 1
    return {"kills": kills, "acknowledged": acknowledged, "lost": lost, "lock_outs": lock_outs}


def _killed(command: Sequence[str], after_s: float) -> int:
    """Start it, let it overwrite each secret once, kill it a moment later. The newest number it acknowledged."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    newest = -1
    for line in process.stdout:
        newest = int(line)
        if newest >= SECRETS:
            break
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    return max([newest, *map(int, rest)])


def _is_lost(value: bytes | None, number: int, newest: int) -> bool:
    last = newest - (newest - number) % SECRETS
    return value is None or not value.isdigit() or int(value) < last


# ---- masking --------------------------------------------------------------------------------------------------------


def _masking() -> dict[str, float]:
    of_people, of_machines = list(people(1, TEXTS)), list(machines(2, TEXTS))
    found = sum(any(f.start <= one.start and one.end <= f.end for f in find(one.text)) for one in of_people)
    false = sum(bool(find(one.text)) for one in of_machines)
    return {
        "recall": found / TEXTS,
        "false_positives": false / TEXTS,
        "people_mb_per_s": _speed(of_people),
        "machines_mb_per_s": _speed(of_machines),
    }


def _speed(samples: Sequence[Sample]) -> float:
    texts = [sample.text for sample in samples]
    began = time.process_time()
    for text in texts:
        find(text)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began)


# ---- telling --------------------------------------------------------------------------------------------------------


def _goals(result: dict[str, Any]) -> list[Goal]:
    ours = result["kills"]["ours"]
    return [
        Goal("masking: recall", 0.999, result["masking"]["recall"]),
        Goal("ours: secrets lost by kills", 0, ours["lost"], at_most=True),
        Goal("ours: lock-outs by kills", 0, ours["lock_outs"], at_most=True),
    ]


def _show(result: dict[str, Any], goals: Sequence[Goal]) -> None:
    print("Latency, medians of turns [ms]")
    latency = result["latency_ms"]
    for name in sorted(latency):
        print(f"  {name:<34}{latency[name]:>10.3f}")
    for act in ("get", "put"):
        for peer in ("age", "systemd-creds"):
            if f"{act}: {peer}" in latency:
                ratios = [
                    latency[f"{act}: {peer}"] / latency[f"{act}: {way}"] for way in ("over the socket", "as a command")
                ]
                print(f"  {act}: {peer} takes {ratios[0]:.1f} x ours over the socket, {ratios[1]:.2f} x our command")
    absent = [peer for peer in ("age", "systemd-creds") if f"get: {peer}" not in latency]
    if absent:
        print(f"  not installed here, or not to be used by this user: {', '.join(absent)}")
    print("\nKilled while it overwrites")
    for name, told in result["kills"].items():
        print(
            f"  {name:<16}{told['kills']:>5} kills {told['acknowledged']:>7} writes {told['lost']:>5} lost secrets "
            f"{told['lock_outs']:>3} lock-outs"
        )
    masking = result["masking"]
    print(
        f"\nMasking of {TEXTS} texts each: recall {masking['recall']:.4%}, false {masking['false_positives']:.4%}, "
        f"{masking['people_mb_per_s']:.1f} MB/s of people's and {masking['machines_mb_per_s']:.1f} of machines' text\n"
    )
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
