"""The key of a disk without a TPM opens on its box, and says so where it does not."""

import json
from dataclasses import dataclass, replace

import pytest

from appliance.errors import BindingError, SealError
from appliance.vault import disk
from appliance.vault.disk import Held

UUID = "8c1d5e4a-6f0b-4d27-9a63-51e20c7fb9d4"


@dataclass(frozen=True)
class Part:
    kind: str
    value: str
    place: str = ""
    model: str = ""


@dataclass(frozen=True)
class Facts:
    facts: tuple[Part, ...]
    hypervisor: str = ""
    memory_kib: int = 64 << 10
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """Its host secret is not asked for: that of a disk is in its header."""

    parts: tuple[Part, ...]
    uefi: Held | None = None

    @property
    def host(self) -> Held:
        raise AssertionError("the vault's host secret lies on the disk that is to be opened")

    def facts(self) -> Facts:
        return Facts(self.parts)


BOX = Box(
    (
        Part("system-uuid", UUID),
        Part("serial", "PF3KT9QW"),
        Part("nic", "a0:36:9f:5c:11:e2", "enp1s0"),
        Part("disk", "S64GNE0R512345", "nvme0n1"),
    ),
    Held(b"u" * 32),
)


def test_it_opens_on_the_box_it_was_made_for() -> None:
    made = disk.make(BOX)
    assert disk.unlock(made.token, BOX).key.reveal() == made.key.reveal()
    assert json.loads(made.token)["keyslots"] == ["0"]
    assert made.promise.does_not


def test_network_ports_are_no_parts_of_it() -> None:
    made = disk.make(BOX)
    assert made.report.of == 3
    early = replace(BOX, parts=tuple(part for part in BOX.parts if part.kind != "nic"))
    assert disk.unlock(made.token, early).warnings == ()


def test_another_box_does_not_open_it() -> None:
    made = disk.make(BOX)
    other = replace(BOX, parts=(Part("system-uuid", UUID.replace("8c1d", "117a")), BOX.parts[3]))
    with pytest.raises(BindingError, match="the disk was sealed with, fewer than"):
        disk.unlock(made.token, other)


def test_another_main_board_without_the_secret_in_its_firmware_does_not_open_it() -> None:
    made = disk.make(BOX)
    with pytest.raises(BindingError, match="UEFI"):
        disk.unlock(made.token, replace(BOX, uefi=Held(b"v" * 32)))


def test_a_box_that_nothing_tells_from_others_is_refused() -> None:
    with pytest.raises(BindingError, match="too little of its own"):
        disk.make(Box((Part("serial", "To be filled by O.E.M."),)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: "{",
        lambda token: "[]",
        lambda token: json.dumps({**json.loads(token), "host": "00"}),
        lambda token: json.dumps({**json.loads(token), "host": 7}),
        lambda token: json.dumps({**json.loads(token), "blob": "?"}),
        lambda token: json.dumps({**json.loads(token), "blob": "AAAA"}),
        lambda token: token + " " * disk.MAX_TOKEN_BYTES,
    ],
)
def test_a_damaged_token_is_told(spoil) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SealError):
        disk.unlock(spoil(disk.make(BOX).token), BOX)
