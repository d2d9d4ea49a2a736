"""The file of rules on disk: read again when it changes. Only its owner, root or the vault's user, may change it."""

import os
import stat
from pathlib import Path

from appliance.config.document import Document
from appliance.errors import ConfigError
from appliance.vault.policy import Policy, parse

MAX_BYTES = 256 << 10


def read(path: Path, owner: int) -> Policy:
    """ConfigError names file, line and remedy. `owner`: the uid that the vault runs as."""
    try:
        facts = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "Name a file that can be read in vault.policy.") from None
    if facts.st_uid not in (0, owner) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path} may be changed by others than root and the vault's user",
            f"chown {owner} {path}; chmod go-w {path}",
        )
    if facts.st_size > MAX_BYTES:
        raise ConfigError(f"{path} has {facts.st_size} bytes; a policy has at most {MAX_BYTES}", "Use patterns.")
    try:
        document = Document.read(path)
    except ConfigError as error:
        raise ConfigError(error.message, "Mend it there; 'millwright vault policy check' looks again.") from None
    return parse(document, owner)


class Rules:
    """`current` is the policy of the file as it is now; of one that is broken, as it last was in order."""

    def __init__(self, path: Path | None, owner: int = os.geteuid()) -> None:
        """ConfigError where the file is broken from the start."""
        self._path, self._owner = path, owner
        self._policy = read(path, owner) if path else Policy(owner)
        self._seen = self._stamp()
        self.trouble = ""

    def current(self) -> Policy:
        stamp = self._stamp()
        if self._path and stamp != self._seen:
            self._seen = stamp
            try:
                self._policy, self.trouble = read(self._path, self._owner), ""
            except ConfigError as error:
                self.trouble = f"the rules as they were are in force: {error.message}"
        return self._policy

    def _stamp(self) -> tuple[int, ...]:
        if self._path is None:
            return ()
        try:
            facts = self._path.stat()
        except OSError:
            return ()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_uid, facts.st_mode
