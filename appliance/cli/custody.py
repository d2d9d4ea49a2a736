"""For the commands of the vault: the vault itself, wherever it is open, and what passes between it and a person.

A secret and a recovery key come from a file, standard input or a hidden prompt, never from the command line, which
every user of the machine can read.
"""

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import instance
from appliance.errors import ConfigError, VaultError
from appliance.runtime import seclusion

if TYPE_CHECKING:
    from appliance.config.document import Document
    from appliance.config.schema import Config
    from appliance.vault.opening import OpenVault
    from appliance.vault.policy import Peer
    from appliance.vault.port import Custody
    from appliance.vault.recovery import RecoveryKey
    from appliance.vault.secret import Secret

TRIES = 3
MAX_PRINTED = 4096  # bytes of a file with a recovery key


@contextmanager
def opened(args: argparse.Namespace) -> "Iterator[Custody]":
    """The vault that runs, else the one that this process opens for as long as the block lasts."""
    from appliance import assembly, binding
    from appliance.vault import client

    seclusion.no_core_dumps()
    config, document = instance.configuration(args)
    path = assembly.vault_socket(config)
    if client.answers(path):
        yield client.by_socket(path)
        return
    with binding.unlock(config, document) as vault:
        yield by_hand(config, document, vault)


def by_hand(config: "Config", document: "Document", vault: "OpenVault") -> "Custody":
    """A vault that this process has opened, under the same rules and the same audit."""
    from appliance.vault.client import Asking
    from appliance.vault.desk import Desk
    from appliance.vault.policy import Policy

    desk, peer = Desk(vault.custody, lambda: Policy(os.geteuid()), vault.audit), me()
    return Asking(lambda request: desk.answer(peer, request))


def me() -> "Peer":
    from appliance.vault.policy import Peer

    return Peer(os.geteuid(), pid=os.getpid())


def secret_from(path: Path | None, name: str, exact: bool) -> "Secret":
    """What is to be put: a file's content, standard input, or what is typed twice."""
    from appliance.vault.port import MAX_SECRET_BYTES
    from appliance.vault.secret import Secret

    if path is not None:
        return Secret(_content(path, MAX_SECRET_BYTES))
    if sys.stdin.isatty():
        typed = getpass.getpass(f"{name} (is not shown): ")
        if not typed and not exact:
            raise VaultError("nothing was typed", "Nothing was changed; --exact keeps an empty secret.")
        if getpass.getpass("the same again: ") != typed:
            raise VaultError("the two are not the same", "Nothing was changed; try again.")
        return Secret(typed.encode())
    content = sys.stdin.buffer.read(MAX_SECRET_BYTES + 2)
    if not content and not exact:  # the program before the pipe has failed: what is kept must not be lost for that
        raise VaultError("nothing came from standard input", "Nothing was changed; --exact keeps an empty secret.")
    is_line = content.endswith(b"\n") and content.count(b"\n") == 1
    return Secret(content if exact or not is_line else content.rstrip(b"\r\n"))


def recovery_key(path: Path | None) -> "RecoveryKey":
    """From a file, or typed without being shown. VaultError names the groups that are mistyped."""
    from appliance.vault.recovery import RecoveryKey

    seclusion.no_core_dumps()
    if path is not None:
        return RecoveryKey.read(_content(path, MAX_PRINTED).decode("utf-8", "replace"))
    if not sys.stdin.isatty():
        return RecoveryKey.read(sys.stdin.read(MAX_PRINTED))
    for attempt in range(TRIES):
        try:
            return RecoveryKey.read(getpass.getpass("recovery key, all 18 groups (is not shown): "))
        except VaultError as error:
            if attempt == TRIES - 1:
                raise
            print(error, file=sys.stderr)
    raise AssertionError("the last attempt raises")


class Handout:
    """Where a new recovery key goes: known to be possible before the key is made."""

    def __init__(self, path: Path | None) -> None:
        """ConfigError where there is neither a file nor a person."""
        seclusion.no_core_dumps()
        self._path, self._file = path, -1
        if path is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError(
                "a recovery key is shown to a person, and this is no terminal", "Name a file: --recovery-file."
            )
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be made: {error.strerror}", "Name a file that is not there yet."
                ) from None

    def give(self, printed: str) -> bool:
        """Whether it has arrived: written, or one group of it typed back."""
        if self._path is None:
            print(f"\nThe recovery key opens the vault without this box. It is shown once:\n\n{printed}\n")
            print("Write it down, on paper, and keep it away from the box.")
            return _confirmed(printed)
        with os.fdopen(self._file, "w") as file:
            self._file = -1
            file.write(printed + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"The recovery key is in {self._path}: move it away from this box, and delete it here.")
        return True

    def withdraw(self) -> None:
        """There will be no key."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._path.unlink(missing_ok=True)


def _confirmed(printed: str) -> bool:
    rows = [line.split("-") for line in printed.splitlines()]
    for _ in range(TRIES):
        row = secrets.randbelow(len(rows))
        place = secrets.randbelow(len(rows[row]))
        typed = input(f"To show that you have it, type group {place + 1} of row {row + 1}: ")
        if typed.strip().upper() == rows[row][place]:
            return True
        print("That is not it.")
    return False


def _content(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "Name another file.") from None
