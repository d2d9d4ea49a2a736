"""A keeper in memory, the fake: keeps nothing beyond its life and binds to nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from appliance.errors import VaultError
from appliance.runtime.service import Clock
from appliance.vault.policy import check_name
from appliance.vault.port import MAX_SECRET_BYTES, MAX_SECRETS, Entry, Layer, Promise, Status
from appliance.vault.secret import Secret

PROMISE = Promise(0, ("nothing",), ("secrets are in memory only",))


class MemoryKeeper:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[Entry, Secret]] = {}
        self._versions: dict[str, int] = {}
        self._recipients: list[str] = []
        self._status = Status("00" * 16, "none", "memory", PROMISE, 1, False, ("memory",), 0)

    def status(self) -> Status:
        return replace(self._status, secrets=len(self._kept))

    def get(self, name: str) -> Secret:
        return self._find(name)[1]

    def put(self, name: str, content: Secret) -> Entry:
        check_name(name)
        size = len(content.reveal())
        if size > MAX_SECRET_BYTES:
            raise VaultError(f"'{name}' would have {size} bytes", f"A secret has at most {MAX_SECRET_BYTES}.")
        if name not in self._kept and len(self._kept) >= MAX_SECRETS:
            raise VaultError(f"the vault is full: {MAX_SECRETS} secrets", "Remove some.")
        self._versions[name] = self._versions.get(name, 0) + 1
        entry = Entry(name, self._versions[name], self._clock(), size)
        self._kept[name] = entry, content
        self._written()
        return entry

    def remove(self, name: str) -> None:
        self._find(name)
        del self._kept[name]
        self._written()

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        return [entry for name, (entry, _) in sorted(self._kept.items()) if name.startswith(prefix)]

    def rotate(self, layer: Layer, name: str = "") -> None:
        if layer == "secret":
            self._find(name)
        elif layer == "namespace" and not any(one.startswith(f"{name}/") for one in self._kept):
            raise VaultError(f"there is no namespace '{name}'", "'millwright vault list' shows what there is.")
        self._written()

    def backup(self) -> bytes:
        return b"backup of " + str(len(self._kept)).encode()  # of nothing: there is no key to read it with

    def renew_recovery(self) -> Secret:
        return Secret(b"0000-0000")

    def recipients(self) -> Sequence[str]:
        return list(self._recipients)

    def add_recipient(self, line: str) -> None:
        self._recipients.append(line)

    def remove_recipient(self, name: str) -> None:
        self._recipients = [line for line in self._recipients if line.split()[1:2] != [name]]

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        return ""  # it is bound to no release

    def settled(self) -> None:
        return None

    def close(self) -> None:
        self._kept.clear()

    def _find(self, name: str) -> tuple[Entry, Secret]:
        try:
            return self._kept[check_name(name)]
        except KeyError:
            raise VaultError(f"there is no secret '{name}'", f"Put it there: millwright vault put {name}") from None

    def _written(self) -> None:
        self._status = replace(self._status, generation=self._status.generation + 1)
