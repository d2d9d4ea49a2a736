"""`millwright vault` as a person uses it: from making one to a restore on another box, on disk and over the socket."""

import argparse
import asyncio
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli import vault as command
from appliance.vault import client

WAIT_S = 30.0
CANARY = "canary-77d0e1-of-the-command"


class Box:
    """A folder with a configuration of its own, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "box.toml"
        self.config.write_text(
            f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n[vault]\nbackend = "plain"\n'
            f'[log]\nlevel = "info"\n[broker]\nexecutable = "mosquitto"\n'
        )
        own = {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONWARNINGS": "error"}
        self.environment = {**os.environ, **own}
        self.told = ""  # all that was ever printed but for `get`

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "appliance", "--config", str(self.config), *words]

    def run(self, *words: str, given: bytes = b"", code: int = 0) -> str:
        """Output and errors. The secret goes in by standard input."""
        done = subprocess.run(
            self.command("vault", *words),
            input=given,
            env=self.environment,
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        told = (done.stdout + done.stderr).decode("utf-8", "replace")
        self.told += told if words[0] != "get" else done.stderr.decode()
        assert done.returncode == code, told
        return told

    @property
    def key(self) -> str:
        return str(self.folder / "key")

    def make(self) -> None:
        self.run("init", "--recovery-file", self.key)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The service in a process of its own."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(self.command("run", "vault"), env=self.environment, stdout=log, stderr=log)
        try:
            _wait_for(self.folder / "run" / "vault.sock", process)
            yield
        finally:
            process.terminate()
            process.wait(WAIT_S)


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while not client.answers(path):
                assert process.poll() is None
                await asyncio.sleep(0)

    asyncio.run(wait())


@pytest.fixture
def box() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="mw-") as name:
        yield Box(Path(name))


@pytest.fixture
def other() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="mw-") as name:
        yield Box(Path(name))


@pytest.mark.parametrize("how", ["on disk", "over the socket"])
def test_the_life_of_a_secret(box: Box, how: str) -> None:
    box.make()
    if how == "on disk":
        live(box)
    else:
        with box.running():
            live(box)
    assert CANARY not in box.told
    leaves_no_trace(box.folder)


def live(box: Box) -> None:
    assert "mqtt/plant: version 1, 28 bytes" in box.run("put", "mqtt/plant", given=f"{CANARY}\n".encode())
    assert box.run("get", "mqtt/plant") == CANARY
    assert "29 bytes" in box.run("put", "mqtt/exact", "--exact", given=f"{CANARY}\n".encode())
    (box.folder / "file").write_bytes(b"\0\xff\n")
    assert "3 bytes" in box.run("put", "tls/key", "--file", str(box.folder / "file"))
    listed = json.loads(box.run("list", "mqtt/", "--json"))["secrets"]
    assert [(one["name"], one["version"], one["size"]) for one in listed] == [
        ("mqtt/exact", 1, 29),
        ("mqtt/plant", 1, 28),
    ]
    for words in (["binding"], ["key"], ["namespace", "mqtt"], ["secret", "mqtt/plant"]):
        assert "renewed" in box.run("rotate", *words)
        assert box.run("get", "mqtt/plant") == CANARY
    status = json.loads(box.run("status", "--json"))
    assert (status["backend"], status["damaged"], status["secrets"]) == ("plain", [], 4)
    assert "does not  anything at all" in box.run("status")
    assert "mqtt/exact is forgotten" in box.run("remove", "mqtt/exact", "--yes")
    assert "there is no secret 'mqtt/exact'" in box.run("get", "mqtt/exact", code=5)
    assert "vault's own" in box.run("remove", "millwright/audit", "--yes", code=5)
    assert "whole:" in box.run("audit", "verify")
    notes = [json.loads(line) for line in box.run("audit", "export").splitlines()]
    done = [(note["action"], note["subject"]) for note in notes if note["actor"].startswith("uid ")]
    assert ("vault.put", "mqtt/plant") in done
    assert ("vault.remove", "mqtt/exact") in done
    assert "vault.rotate" in box.run("audit", "show")


def leaves_no_trace(folder: Path) -> None:
    """In no file that was written: log, journal, state."""
    found = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert found == []


class TestRecovery:
    def test_a_recovery_key_opens_what_the_box_no_longer_does(self, box: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=CANARY.encode())
        assert "opened, under a new key" in box.run("recover", "--recovery-file", box.key)
        assert box.run("get", "mqtt/plant") == CANARY
        printed = Path(box.key).read_text()
        assert "opened" in box.run("recover", given=printed.lower().encode())

    def test_a_mistyped_one_names_the_group_and_is_not_repeated(self, box: Box) -> None:
        box.make()
        groups = Path(box.key).read_text().split("-")
        wrong = f"{groups[0][:-1]}{'0' if groups[0][-1] != '0' else '1'}"
        told = box.run("recover", given="-".join([wrong, *groups[1:]]).encode(), code=5)
        assert "group 1 of row 1 is mistyped" in told
        assert wrong not in told
        assert groups[1] not in told

    def test_a_renewed_one_replaces_the_old(self, box: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=CANARY.encode())
        renewed = str(box.folder / "key2")
        with box.running():
            box.run("rotate", "recovery", "--recovery-file", renewed)
        assert "is none of the vault's" in box.run("recover", "--recovery-file", box.key, code=5)
        box.run("recover", "--recovery-file", renewed)
        assert box.run("get", "mqtt/plant") == CANARY

    def test_a_file_that_is_there_is_not_written_over_and_no_vault_is_made(self, box: Box) -> None:
        Path(box.key).write_text("mine")
        assert "cannot be made" in box.run("init", "--recovery-file", box.key, code=2)
        assert Path(box.key).read_text() == "mine"
        assert "there is no vault" in box.run("status", code=5)

    def test_nobody_sees_the_key_where_nobody_is(self, box: Box) -> None:
        told = box.run("init", code=2)
        assert "--recovery-file" in told
        assert not re.search(r"\b[0-9A-Z]{4}-[0-9A-Z]{4}-", told)

    def test_a_second_vault_is_refused(self, box: Box) -> None:
        box.make()
        assert "there is a vault already" in box.run("init", "--recovery-file", f"{box.key}2", code=5)


class TestBackup:
    def test_it_comes_back_on_its_own_box(self, box: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=CANARY.encode())
        backup = str(box.folder / "backup")
        with box.running():
            assert "reads it: recovery" in box.run("backup", backup)
        box.run("put", "mqtt/plant", given=b"lost")
        assert "there is a vault" in box.run("restore", backup, "--recovery-file", box.key, code=5)
        told = box.run("restore", backup, "--recovery-file", box.key, "--replace")
        assert "kept the vault that was there" in told
        assert box.run("get", "mqtt/plant") == CANARY
        assert "whole:" in box.run("audit", "verify")
        leaves_no_trace(box.folder)

    def test_on_another_box_only_with_a_ticket(self, box: Box, other: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=CANARY.encode())
        backup, ticket = str(box.folder / "backup"), str(box.folder / "ticket")
        box.run("backup", backup)
        refused = other.run("restore", backup, "--recovery-file", box.key, code=5)
        found = re.search(r"millwright vault ticket \S+ --box (\w+) ", refused)
        assert found is not None, refused
        box.run("ticket", backup, "--box", "0" * 32, "--out", ticket, "--recovery-file", box.key)
        other.run("restore", backup, "--ticket", ticket, "--recovery-file", box.key, code=5)
        box.run("ticket", backup, "--box", found[1], "--out", ticket, "--recovery-file", box.key)
        other.run("restore", backup, "--ticket", ticket, "--recovery-file", box.key)
        assert other.run("get", "mqtt/plant") == CANARY
        assert json.loads(other.run("status", "--json"))["vault"] != json.loads(box.run("status", "--json"))["vault"]

    def test_the_other_box_signs_its_journal_with_a_key_of_its_own(self, box: Box, other: Box) -> None:
        box.make()
        box.run("backup", str(box.folder / "backup"))
        other.make()
        told = other.run("restore", f"{box.folder}/backup", "--replace", given=Path(box.key).read_bytes(), code=5)
        name = re.search(r"--box ([0-9a-f]{32})", told)
        assert name
        ticket = str(other.folder / "ticket")
        signing = ("ticket", f"{box.folder}/backup", "--box", name[1], "--out", ticket, "--recovery-file", box.key)
        box.run(*signing)
        restoring = ("restore", f"{box.folder}/backup", "--ticket", ticket, "--replace", "--recovery-file", box.key)
        assert "kept the journal that was there as audit.1.replaced" in other.run(*restoring)
        assert "whole" in other.run("audit", "verify")
        assert box.run("get", "millwright/audit") != other.run("get", "millwright/audit")

    def test_one_who_keeps_an_escrow_key_reads_it_too(self, box: Box, other: Box) -> None:
        escrow, lines = str(box.folder / "escrow"), box.folder / "recipients"
        lines.write_text(box.run("recipients", "new", "head-office", "--recovery-file", escrow).splitlines()[-1])
        box.run("init", "--recovery-file", box.key, "--recipients", str(lines))
        box.run("put", "mqtt/plant", given=CANARY.encode())
        assert "head-office" in box.run("recipients", "list")
        box.run("recover", "--recovery-file", escrow)
        assert box.run("get", "mqtt/plant") == CANARY
        with box.running():
            box.run("recipients", "remove", "head-office")
            assert "head-office" not in box.run("recipients", "list")
            box.run("recipients", "add", str(lines))
            box.run("recipients", "remove", "head-office")
        box.run("recover", "--recovery-file", escrow, code=5)


def test_status_tells_the_parts_of_the_box_again(box: Box) -> None:
    """Of a fingerprint; other backends have no bits to tell."""
    args = argparse.Namespace(config=box.config)
    assert "the host secret" in "\n".join(command.parts(args, "fingerprint"))
    assert command.parts(args, "plain") == command.parts(args, "recovery") == []


class TestRefusals:
    def test_without_a_vault_the_remedy_says_how_to_make_one(self, box: Box) -> None:
        for words in (["status"], ["get", "mqtt/plant"], ["list"], ["rotate", "key"]):
            assert "millwright vault init" in box.run(*words, code=5)

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["put", "plant"], "'plant' is no name of a secret"),
            (["rotate", "namespace"], "wants a name"),
            (["rotate", "key", "mqtt"], "has no name"),
            (["remove", "mqtt/plant"], "--yes"),
            (["put", "mqtt/plant", "--file", "none"], "none cannot be read"),
            (["ticket", "none", "--box", "x", "--out", "y"], "cannot be read"),
            (["audit", "verify", "--key", "zz"], "no public key"),
            (["policy", "check", "none"], "none"),
        ],
    )
    def test_a_mistake_is_told_with_a_remedy(self, box: Box, words: list[str], problem: str) -> None:
        box.make()
        told = box.run(*words, given=b"x", code=5 if words[0] == "put" and len(words) == 2 else 2)
        assert problem in told
        assert "\n  -> " in told

    def test_a_damaged_journal_is_told_by_its_entry(self, box: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=b"x")
        (file,) = (box.folder / "state" / "vault" / "audit").iterdir()
        file.write_bytes(file.read_bytes().replace(b'"vault.put"', b'"vault.get"', 1))
        assert re.search(r"entry \d+ is not as it was written", box.run("audit", "verify", code=1))

    def test_a_line_that_is_no_entry_is_shown_as_such(self, box: Box) -> None:
        box.make()
        (file,) = (box.folder / "state" / "vault" / "audit").iterdir()
        file.write_bytes(b'{"a"\n[]\n\xff\n' + file.read_bytes())
        assert box.run("audit", "show").count("no entry") == 3

    def test_a_program_before_the_pipe_that_failed_replaces_nothing(self, box: Box) -> None:
        box.make()
        box.run("put", "mqtt/plant", given=CANARY.encode())
        assert "--exact" in box.run("put", "mqtt/plant", given=b"", code=5)
        assert box.run("get", "mqtt/plant") == CANARY
        box.run("put", "mqtt/plant", "--exact", given=b"")
        assert box.run("get", "mqtt/plant") == ""

    def test_nothing_it_writes_is_for_others_even_without_a_umask(self, box: Box) -> None:
        """And a link that somebody has laid where the backup's draft goes is not written through."""
        before = os.umask(0)
        try:
            box.make()
            box.run("put", "mqtt/plant", given=b"x")
            box.run("backup", str(box.folder / "backup"))
        finally:
            os.umask(before)
        own = [path for path in box.folder.rglob("*") if path != box.config]
        assert {path.name for path in own} >= {"backup", "key", "vault.1", "lock", "audit"}
        assert [path for path in own if path.is_file() and path.stat().st_mode & 0o077] == []
        assert [path for path in own if path.is_dir() and path.stat().st_mode & 0o022] == []

    def test_who_may_is_told(self, box: Box) -> None:
        rules = box.folder / "rules.toml"
        rules.write_text('[[rule]]\nunit = "mosquitto.service"\nread = ["mqtt/*"]\n')
        rules.chmod(0o600)
        box.config.write_text(box.config.read_text() + "[vault.plain]\n")
        box.config.write_text(box.config.read_text().replace('"plain"\n', f'"plain"\npolicy = "{rules}"\n', 1))
        box.make()
        assert "in order, 1 rules" in box.run("policy", "check")
        shown = json.loads(box.run("policy", "show", "mqtt/plant", "--json"))
        assert "unit mosquitto.service" in shown["mqtt/plant"]["read"]
        assert "unit mosquitto.service" not in shown["mqtt/plant"]["write"]
        rules.write_text('[[rule]]\nunit = "mosquitto.service"\nraed = ["mqtt/*"]\n')
        assert f"{rules}:3: rule.0.raed" in box.run("policy", "check", code=2)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, box: Box, *words: str) -> None:
        ours, theirs = pty.openpty()
        self._ours = ours
        self.process = subprocess.Popen(
            box.command("vault", *words),
            env=box.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def expect(self, pattern: str) -> "re.Match[str]":
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._ours], [], [], WAIT_S)
            assert ready, self.seen
            try:
                self.seen += os.read(self._ours, 4096).decode()
            except OSError:  # the other side has ended
                pytest.fail(f"no {pattern!r} in {self.seen!r}")
        self.seen = self.seen[found.end() :]
        return found

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def end(self) -> int:
        try:
            while os.read(self._ours, 4096):
                pass
        except OSError:
            pass
        os.close(self._ours)
        return self.process.wait(WAIT_S)


class TestTerminal:
    def test_the_recovery_key_is_shown_once_and_one_group_is_typed_back(self, box: Box) -> None:
        terminal = Terminal(box, "init")
        shown = terminal.expect(r"((?:[0-9A-Z]{4}-){5}[0-9A-Z]{4}\s+){3}")[0].split()
        for answer in ("XXXX", ""):
            asked = terminal.expect(r"type group (\d) of row (\d): ")
            terminal.type(answer or shown[int(asked[2]) - 1].split("-")[int(asked[1]) - 1].lower())
        terminal.expect("The vault is in")
        assert terminal.end() == 0
        box.run("recover", given="\n".join(shown).encode())

    def test_a_key_that_nobody_noted_is_told(self, box: Box) -> None:
        terminal = Terminal(box, "init")
        for _ in range(3):
            terminal.expect(r"type group \d of row \d: ")
            terminal.type("?")
        terminal.expect("millwright vault rotate recovery")
        assert terminal.end() == 1

    def test_a_secret_is_typed_twice_unseen_and_not_shown(self, box: Box) -> None:
        box.make()
        terminal = Terminal(box, "put", "mqtt/plant")
        for prompt in (r"is not shown\): ", "the same again: "):
            terminal.expect(prompt)
            terminal.type(CANARY)
        terminal.expect("version 1, 28 bytes")
        assert CANARY not in terminal.seen
        assert terminal.end() == 0
        refused = Terminal(box, "get", "mqtt/plant")
        refused.expect("--show")
        assert refused.end() == 2
        shown = Terminal(box, "get", "mqtt/plant", "--show")
        shown.expect(CANARY)
        assert shown.end() == 0

    def test_two_that_differ_change_nothing(self, box: Box) -> None:
        box.make()
        terminal = Terminal(box, "put", "mqtt/plant")
        for prompt, typed in ((r"is not shown\): ", CANARY), ("the same again: ", "else")):
            terminal.expect(prompt)
            terminal.type(typed)
        terminal.expect("not the same")
        assert terminal.end() == 5
        assert "Nothing is kept" not in box.run("list")
        assert "mqtt/plant" not in box.run("list")
