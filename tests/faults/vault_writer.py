"""A vault that is killed again and again: `python vault_writer.py FOLDER CUTS SEED`.

Each turn a child opens the vault, compares it with what was acknowledged, and then puts, removes and rotates as fast
as it can, until it is killed at some moment. What it says goes to a file before and after each change. Prints what it
did as JSON; a turn that finds something wrong ends it with what that is.
"""

import json
import os
import random
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

from appliance.vault import chest
from appliance.vault.chest import Chest
from appliance.vault.port import Opened, Promise
from appliance.vault.secret import Secret

NAMES = [f"{space}/{name}" for space in "abc" for name in ("one", "two", "three")]
LONGEST = 3000  # bytes of a secret
MAX_MS = 40  # that a child lives after it has opened the vault
OPEN_S = 60
NOW = 1_790_000_000_000_000_000

State = dict[str, str]  # name -> content, hex


class Board:
    """Binds a key to nothing: here only files are at stake."""

    name, promise = "board", Promise(1, (), ("everything",))

    def seal(self, key: Secret) -> bytes:
        return flipped(key.reveal())

    def open(self, blob: bytes) -> Opened:
        return Opened(Secret(flipped(blob)))

    def latch(self) -> None:
        return None


def flipped(content: bytes) -> bytes:
    return bytes(one ^ 0x5A for one in content)


class FileCounter:
    """Appends a byte: what was appended is there after a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def value(self) -> int:
        return self._path.stat().st_size

    def advance(self) -> int:
        with self._path.open("ab", buffering=0) as file:
            file.write(b"+")
        return self.value()


class Journal:
    """What was acknowledged, and the one change that may have been under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def begin(self, state: State) -> None:
        """A new life: what it found is what stands."""
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(_line("found", state))
        fresh.replace(self._path)
        self._file = self._path.open("ab", buffering=0)

    def say(self, word: str, state: State) -> None:
        assert self._file is not None
        self._file.write(_line(word, state))

    def allowed(self) -> list[State]:
        """The states that may be found now."""
        done: State = {}
        begun: State | None = None
        for word, state in self._lines():
            done, begun = (done, state) if word == "begin" else (state, None)
        return [done] if begun is None else [done, begun]

    def acknowledged(self) -> int:
        return sum(word == "done" for word, _ in self._lines())

    def life(self) -> int:
        """Another one for each child that came so far as to find something."""
        return self._path.stat().st_ino if self._path.exists() else 0

    def _lines(self) -> list[tuple[str, State]]:
        """But for one that was cut while it was written: nothing was done yet, or all of it."""
        raw = self._path.read_bytes() if self._path.exists() else b""
        return [(word, state) for word, state in map(json.loads, raw.split(b"\n")[:-1])]


def _line(word: str, state: State) -> bytes:
    return json.dumps([word, state]).encode() + b"\n"


def opened(folder: Path) -> Chest:
    return chest.open(folder / "vault", [Board()], FileCounter(folder / "counter"), lambda: NOW)


def found_in(vault: Chest) -> State:
    return {one.name: vault.get(one.name).reveal().hex() for one in vault.entries()}


def turn(folder: Path, dice: random.Random, ready: int) -> None:
    journal = Journal(folder / "journal")
    vault = opened(folder)
    status, state, allowed = vault.status(), found_in(vault), journal.allowed()
    if state not in allowed or status.damaged or status.warnings:
        raise AssertionError(f"{status}: found {state}, may be {allowed}")
    journal.begin(state)
    os.write(ready, b"!")
    while True:
        state = change(vault, journal, dice, state)
        os.write(ready, b"+")


def change(vault: Chest, journal: Journal, dice: random.Random, state: State) -> State:
    """One of them, told before and after."""
    name, kind = dice.choice(NAMES), dice.random()
    after = dict(state)
    if kind < 0.5:
        content = dice.randbytes(dice.randrange(LONGEST))
        after[name] = content.hex()
        journal.say("begin", after)
        vault.put(name, Secret(content))
    elif kind < 0.6 and name in state:
        del after[name]
        journal.say("begin", after)
        vault.remove(name)
    elif kind < 0.8 and name in state:
        vault.rotate(*dice.choice([("namespace", name[0]), ("secret", name)]))  # type: ignore[arg-type]
    else:
        vault.rotate(dice.choice(["key", "binding"]))  # type: ignore[arg-type]
    journal.say("done", after)
    return after


def child(folder: Path, dice: random.Random, ready: int) -> None:
    """Never returns."""
    try:
        turn(folder, dice, ready)
    except BaseException:  # noqa: BLE001  # whatever it is, the parent tells it
        (folder / "wrong").write_text(traceback.format_exc())
    os._exit(1)


def cut(folder: Path, dice: random.Random) -> None:
    """One life of a child. After it said that it is ready, and has made a few changes however busy the machine is, it
    has a few milliseconds; some do not even get to that."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        child(folder, dice, write)
    os.close(write)
    early = dice.random() < 0.2
    with os.fdopen(read, "rb"):
        if not early:
            for _ in range(dice.randrange(1, 6)):
                select.select([read], [], [], OPEN_S)
                os.read(read, 1)
        select.select([read], [], [], dice.uniform(0, MAX_MS) / 1000)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit((folder / "wrong").read_text())


def main(folder: Path, cuts: int, seed: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "counter").touch()
    made, _ = chest.create(folder / "vault", Board(), "aes-256-gcm", (), FileCounter(folder / "counter"), lambda: NOW)
    made.close()
    dice, journal = random.Random(seed), Journal(folder / "journal")
    interrupted = acknowledged = 0
    for _ in range(cuts):
        before = journal.life()
        cut(folder, random.Random(dice.random()))
        interrupted += len(journal.allowed()) > 1
        acknowledged += journal.acknowledged() if journal.life() != before else 0
    with opened(folder) as vault:
        assert found_in(vault) in journal.allowed()
        generation = vault.status().generation
    print(
        json.dumps({"cuts": cuts, "interrupted": interrupted, "acknowledged": acknowledged, "generation": generation})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
