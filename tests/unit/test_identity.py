"""What a box says of itself, and the secrets it keeps: read from machines laid out as file trees, and from this one."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware import identity, keepsake
from hardware.identity import Box, Facts
from hardware.keepsake import ATTRIBUTES, BYTES, VARIABLE, HostFile, Variable
from tests import boxes


def named(facts: Facts) -> list[tuple[str, str]]:
    return [(fact.kind, fact.place) for fact in facts.facts]


def values(facts: Facts, kind: str) -> list[str]:
    return [fact.value for fact in facts.facts if fact.kind == kind]


@contextmanager
def another_user() -> Iterator[None]:
    """Root may do everything: not root for as long as the block lasts."""
    was_root = os.geteuid() == 0
    try:
        if was_root:
            os.seteuid(65534)
        yield
    finally:
        if was_root:
            os.seteuid(0)


# ---- facts ---------------------------------------------------------------------------------------------------------


def test_a_mini_pc_tells_its_own_parts_and_no_others(tmp_path: Path) -> None:
    facts = boxes.box("mini_pc", tmp_path).facts()
    assert named(facts) == [
        ("board-model", ""),
        ("system-uuid", ""),
        *[("serial", "")] * 3,
        ("cpu-model", ""),
        ("memory", "Controller0-ChannelA"),
        *[("nic", f"enp{number}s0") for number in (1, 2, 3, 4)],  # no bridge, and not the one on USB
        ("nic", "wlp5s0"),
        *[("disk", "nvme0n1")] * 2,  # no stick, no loop
    ]
    assert values(facts, "disk") == ["S6P7NF0W412088K", "eui.0025385c31b0a7f2"]
    assert facts.hypervisor == ""
    assert facts.memory_kib == 16_120_332
    assert facts.unreadable == ()


def test_a_servers_parts(tmp_path: Path) -> None:
    facts = boxes.box("server", tmp_path).facts()
    assert values(facts, "cpu-serial") == ["0x2b3f1c90d47ae586"]
    assert values(facts, "memory") == ["3825F0C1", "3825F0D7", "NO DIMM"]
    assert values(facts, "disk")[:2] == ["PHYF204300AB960CGN", "naa.55cd2e41539f6c1b"]
    assert "bond0" not in [place for _, place in named(facts)]


def test_a_router_and_a_board_without_dmi(tmp_path: Path) -> None:
    router = boxes.box("router", tmp_path / "router").facts()
    assert values(router, "tree-serial") == ["9C9D7E4A10F2"]
    assert [place for kind, place in named(router) if kind == "disk"] == ["mmcblk0"]
    board = boxes.box("board", tmp_path / "board").facts()
    assert values(board, "cpu-serial") == values(board, "tree-serial") == ["10000000c3a81f5e"]


@pytest.mark.parametrize(
    ("name", "hypervisor"), [("vm", "QEMU"), ("micro_vm", "a hypervisor"), ("mini_pc", ""), ("board", "")]
)
def test_guests_are_known(name: str, hypervisor: str, tmp_path: Path) -> None:
    assert boxes.box(name, tmp_path).facts().hypervisor == hypervisor


def test_an_address_made_up_by_software_gives_way_to_the_permanent_one(tmp_path: Path) -> None:
    machine = boxes.table("router")
    machine["ports"]["eth0"]["assigned"] = "3"
    root = boxes.lay(machine, tmp_path)
    assert "eth0" not in [place for _, place in named(identity.read(root))]
    asked = identity.read(root, {"eth0": "9c:9d:7e:4a:10:f2"}.get)  # type: ignore[arg-type]
    assert values(asked, "nic")[0] == "9c:9d:7e:4a:10:f2"


def test_nothing_is_there_and_nothing_is_raised(tmp_path: Path) -> None:
    assert identity.read(tmp_path) == Facts(())


def test_values_are_in_no_repr(tmp_path: Path) -> None:
    facts = boxes.box("server", tmp_path).facts()
    own = [fact.value for fact in facts.facts if not fact.kind.endswith("-model") and fact.value != "NO DIMM"]
    assert len(own) > 10
    assert [value for value in own if value in repr(facts)] == []


@given(st.binary(max_size=120))
def test_any_smbios_structure_gives_printable_text_or_none(raw: bytes) -> None:
    assert all(identity._smbios(raw, offset).isprintable() for offset in (0x10, 0x17, 0x18, 0x1A))


def test_what_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = boxes.lay(boxes.table("vm"), Path(folder))
        secret = root / "sys/class/dmi/id/product_uuid"
        secret.chmod(0o000)
        Path(folder).chmod(0o755)
        with another_user():
            facts = identity.read(root)
    assert facts.unreadable == ("/sys/class/dmi/id/product_uuid",)
    assert values(facts, "system-uuid") == []


def test_this_machine() -> None:
    """It has a processor and memory; what it says twice is the same."""
    box = Box()
    facts = box.facts()
    assert facts.memory_kib > 0
    assert facts == box.facts()
    assert identity.burnt_in("no-such-port") == ""


def test_an_image_is_known_by_its_marker(tmp_path: Path) -> None:
    assert not Box(tmp_path).installed
    boxes.write(tmp_path / identity.INSTALLED, b"")
    assert Box(tmp_path).installed


# ---- the host secret -----------------------------------------------------------------------------------------------


def test_the_host_secret_is_made_once_and_for_root(tmp_path: Path) -> None:
    path = tmp_path / "vault/host-secret"
    assert HostFile(path).read() is None
    made = HostFile(path).create()
    assert len(made) == BYTES
    assert HostFile(path).create() == HostFile(path).read() == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_many_that_make_the_host_secret_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: HostFile(tmp_path / "secret").create(), range(32)))
    assert len(set(made)) == 1


def test_a_draft_left_by_a_power_cut_is_not_the_secret(tmp_path: Path) -> None:
    (tmp_path / ".secret.17.abcd.new").write_bytes(b"half")
    assert HostFile(tmp_path / "secret").read() is None
    assert len(HostFile(tmp_path / "secret").create()) == BYTES


@pytest.mark.parametrize("content", [b"", b"short", bytes(BYTES + 1)])
def test_a_damaged_host_secret_is_never_made_anew(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    for attempt in (HostFile(path).read, HostFile(path).create):
        with pytest.raises(OSError, match=f"holds {min(len(content), BYTES + 1)} bytes, not 32"):
            attempt()
    assert path.read_bytes() == content


# ---- the UEFI variable ---------------------------------------------------------------------------------------------


@pytest.fixture
def efivars(tmp_path: Path) -> Path:
    (tmp_path / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\x06\0\0\0\1")
    return tmp_path


def test_a_variable_carries_its_attributes(efivars: Path) -> None:
    made = Variable(efivars).create()
    raw = (efivars / VARIABLE).read_bytes()
    assert raw == ATTRIBUTES + made == b"\x07\0\0\0" + made
    assert Variable(efivars).create() == Variable(efivars).read() == made


def test_a_variable_that_linux_made_immutable(efivars: Path) -> None:
    """On a file system without such flags it is as any other file."""
    variable, path = Variable(efivars), efivars / VARIABLE
    path.touch(0o644)  # made, never written: the firmware knows nothing of it
    keepsake._set_immutable(path, True)
    made = variable.create()
    path.chmod(0o644)  # as efivarfs shows it after a reboot
    immutable = keepsake._set_immutable(path, True) or keepsake._set_immutable(path, True)
    try:
        assert variable.read() == made
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert keepsake._set_immutable(path, immutable) == immutable
    finally:
        variable.remove()
    assert variable.read() is None
    variable.remove()


def test_a_variable_where_efivarfs_is_not_mounted(efivars: Path) -> None:
    (efivars / "empty").mkdir()  # as the kernel leaves it
    for folder in (efivars / "none", efivars / "empty"):
        for attempt in (Variable(folder).read, Variable(folder).create):
            with pytest.raises(OSError, match="efivarfs is not mounted"):
                attempt()


def test_a_damaged_variable_is_never_made_anew(efivars: Path) -> None:
    (efivars / VARIABLE).write_bytes(ATTRIBUTES + b"short")
    with pytest.raises(OSError, match="holds 5 bytes, not 32"):
        Variable(efivars).create()


# ---- the box's id --------------------------------------------------------------------------------------------------


def test_a_box_id_stays_and_hangs_on_both_secrets(tmp_path: Path) -> None:
    box = boxes.box("mini_pc", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there yet"):
        box.box_id()
    first = box.box_id(create=True)
    assert first == boxes.at(tmp_path).box_id()
    assert len(first) == 32
    box.uefi.remove()  # type: ignore[union-attr]
    assert box.box_id() != first


def test_a_box_without_uefi_has_an_id(tmp_path: Path) -> None:
    one, other = boxes.box("router", tmp_path / "one"), boxes.box("router", tmp_path / "other")
    assert one.uefi is None
    assert one.box_id(create=True) != other.box_id(create=True)


def test_who_may_not_write_the_firmware_has_an_id_of_the_host_secret_alone() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = boxes.lay(boxes.table("mini_pc"), Path(folder))
        Path(folder).chmod(0o755)
        made = boxes.at(root).host.create()
        boxes.at(root).host._path.chmod(0o644)
        (root / "var/lib/millwright/vault").chmod(0o755)
        (root / boxes.EFIVARS).chmod(0o555)
        with another_user():
            number = boxes.at(root).box_id(create=True)
        (root / boxes.EFIVARS).chmod(0o755)
    assert number == hashlib.sha256(b"millwright/box-id/1\0" + made).hexdigest()[:32]
