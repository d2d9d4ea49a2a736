"""The fingerprint on machines of many kinds: opens at home, after repairs, and nowhere else."""

import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BindingError
from appliance.vault.backends import fingerprint
from appliance.vault.backends.fingerprint import Fingerprint, Settings
from appliance.vault.factors import candidates
from appliance.vault.secret import Secret
from hardware.identity import Box
from hardware.keepsake import VARIABLE
from tests import boxes
from tests.boxes import EFIVARS, HOST_SECRET

KEY = bytes(range(32))
CHEAP = Settings(memory_mib=8)
CHEAP_WITHOUT_UEFI = Settings(memory_mib=8, uefi=False)
ENOUGH = [name for name in boxes.NAMES if name != "micro_vm"]
# What of which: see the head of each table in tests/machines.
KINDS = {"mini_pc", "router", "vm", "server", "board", "micro_vm"}


def backend(root: Path, settings: Settings = CHEAP) -> Fingerprint:
    return fingerprint.create(settings, boxes.at(root))


def laid(name: str, root: Path, **changes: Any) -> Path:
    """A machine in which parts were replaced: disks, ports, modules or files by name; None takes one out."""
    machine = boxes.table(name)
    for kind, parts in changes.items():
        if isinstance(parts, dict):
            machine[kind] = {key: part for key, part in {**machine[kind], **parts}.items() if part is not None}
        else:
            machine[kind] = parts
    return boxes.lay(machine, root)


def carry(source: Path, target: Path, uefi: bool) -> None:
    """What is on the disk comes along, and where `uefi` the variables, too."""
    for path in (HOST_SECRET, f"{EFIVARS}/{VARIABLE}") if uefi else (HOST_SECRET,):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target / path)


def sealed(root: Path, settings: Settings = CHEAP) -> bytes:
    return backend(root, settings).seal(Secret(KEY))


def refusal(root: Path, blob: bytes, settings: Settings = CHEAP) -> BindingError:
    """And it gives away nothing of the box."""
    with pytest.raises(BindingError) as caught:
        backend(root, settings).open(blob)
    told = str(caught.value)
    assert not [factor.value for factor in candidates(boxes.at(root).facts().facts) if factor.value in told.lower()]
    return caught.value


def test_six_kinds_of_machine_are_there() -> None:
    assert set(boxes.NAMES) > KINDS
    assert {boxes.table(name)["origin"] for name in KINDS} == {"modelled", "recorded"}


@pytest.mark.parametrize("name", ENOUGH)
def test_it_opens_at_home(name: str, tmp_path: Path) -> None:
    opened = backend(tmp_path).open(sealed(laid(name, tmp_path)))
    assert opened.key.reveal() == KEY
    assert opened.warnings == ()
    assert not opened.reseal


@pytest.mark.parametrize(("here", "there"), list(permutations(ENOUGH, 2)))
def test_a_copy_of_the_disk_opens_in_no_other_machine(here: str, there: str, tmp_path: Path) -> None:
    """Even one that took the UEFI variable along, or whose firmware was copied."""
    blob = sealed(laid(here, tmp_path / "here"))
    other = laid(there, tmp_path / "there")
    carry(tmp_path / "here", other, uefi=(tmp_path / "here" / EFIVARS).exists())
    assert "fewer than" in refusal(other, blob).message


# ---- a stolen or cloned disk ---------------------------------------------------------------------------------------


def test_the_disk_itself_in_the_next_box_of_the_same_order(tmp_path: Path) -> None:
    blob = sealed(laid("mini_pc", tmp_path / "here"))
    twin = laid("mini_pc_twin", tmp_path / "twin", disks=boxes.table("mini_pc")["disks"])
    carry(tmp_path / "here", twin, uefi=False)
    assert "the secret in the UEFI variables that the vault was sealed with is gone" in refusal(twin, blob).message
    backend(twin).seal(Secret(KEY))  # the twin has a secret of its own now
    assert "UEFI variables that the vault was sealed with is another one" in refusal(twin, blob).message


def test_the_disk_itself_where_uefi_was_not_to_be_used(tmp_path: Path) -> None:
    blob = sealed(laid("mini_pc", tmp_path / "here"), CHEAP_WITHOUT_UEFI)
    twin = laid("mini_pc_twin", tmp_path / "twin", disks=boxes.table("mini_pc")["disks"])
    carry(tmp_path / "here", twin, uefi=False)
    told = refusal(twin, blob, CHEAP_WITHOUT_UEFI).message
    assert "fewer than" in told
    assert "maybe others: network port enp1s0 (igc)" in told


def test_a_vault_file_without_the_host_secret(tmp_path: Path) -> None:
    blob = sealed(laid("server", tmp_path))
    (tmp_path / HOST_SECRET).unlink()
    error = refusal(tmp_path, blob)
    assert "the host secret that the vault was sealed with is gone" in error.message
    assert "copied from another box" in error.remedy


def test_a_clone_of_a_guest_with_an_id_of_its_own(tmp_path: Path) -> None:
    blob = sealed(laid("vm", tmp_path / "here"))
    clone = laid(
        "vm",
        tmp_path / "clone",
        files={"sys/class/dmi/id/product_uuid": "0b93d6c4-2e1f-4c7a-9d80-5a6f7e3b1c22"},
        ports={"enp1s0": {"address": "52:54:00:19:aa:03", "bus": "pci0000:00/virtio0"}},
    )
    carry(tmp_path / "here", clone, uefi=True)  # a guest's variables are a file beside its disk
    assert "fewer than 1" in refusal(clone, blob).message


def test_a_copy_of_the_whole_guest_opens_and_the_promise_says_so(tmp_path: Path) -> None:
    blob = sealed(laid("vm", tmp_path / "here"))
    copy = laid("vm", tmp_path / "copy")
    carry(tmp_path / "here", copy, uefi=True)
    assert backend(copy).open(blob).key.reveal() == KEY
    assert any("a copy of the whole guest of QEMU" in word for word in backend(copy).promise.does_not)


# ---- too little to bind to -----------------------------------------------------------------------------------------


def test_a_box_of_junk_is_refused_and_told_why(tmp_path: Path) -> None:
    root = laid("micro_vm", tmp_path)
    with pytest.raises(BindingError, match="about 0 bits, and 40 are the least") as caught:
        sealed(root)
    assert "network port eth0 (virtio_net): made up by software" in caught.value.message
    assert "minimum_bits" in caught.value.remedy
    assert not (root / HOST_SECRET).exists()


def test_a_board_without_dmi_may_replace_nothing_and_is_warned(tmp_path: Path) -> None:
    report = backend(laid("board", tmp_path)).report()
    assert (report.needed, report.of) == (3, 3)  # with one less, a thief would have 24 bits to guess
    assert report.sufficient
    assert any("no part may be replaced" in warning for warning in report.warnings)
    with pytest.raises(BindingError, match="too little of its own"):
        sealed(tmp_path, Settings(memory_mib=8, minimum_bits=60))


def test_it_tolerates_more_where_less_will_do(tmp_path: Path) -> None:
    report = backend(laid("board", tmp_path), Settings(memory_mib=8, minimum_bits=20)).report()
    assert (report.needed, report.of) == (2, 3)


# ---- repairs -------------------------------------------------------------------------------------------------------

NEW_DISK = {"bus": "pci/ata1", "page_80": "50026B7785A1C3D9", "device/model": "Other SSD"}
NEW_CARD = {"address": "68:05:ca:3b:91:70", "bus": "pci/0000:01:00.0", "driver": "ice"}
NEW_MODULE = {"locator": "A1", "maker": "00CE00B300CE", "serial": "41C7A905", "part": "M391A2G43BB2-CWE"}
TO_BE_FILLED = {f"sys/class/dmi/id/{name}": "Default string" for name in ("product_serial", "board_serial")}


def test_a_server_repaired_twice_with_a_new_sealing_between(tmp_path: Path) -> None:
    blob = sealed(laid("server", tmp_path / "0"))
    first = laid("server", tmp_path / "1", disks={"sda": NEW_DISK}, modules={"1": NEW_MODULE})
    carry(tmp_path / "0", first, uefi=True)
    opened = backend(first).open(blob)
    assert opened.reseal
    assert opened.warnings == (
        "memory module A1 (00CE00B300CE M391A2G43BB2-CWE) is not the one the vault was sealed with",
        "disk sda (SSDSC2KB960G8R) is not the one the vault was sealed with",
    )
    again = backend(first).seal(opened.key)
    assert backend(first).open(again).warnings == ()

    repaired: dict[str, Any] = {"disks": {"sda": NEW_DISK}, "modules": {"1": NEW_MODULE}}
    repaired["ports"] = {"ens1f0": NEW_CARD, "ens1f1": None}
    repaired["files"] = {"sys/devices/system/cpu/cpu0/topology/ppin": "0x77aa31b05c9de214"}
    second = laid("server", tmp_path / "2", **repaired)
    carry(first, second, uefi=True)
    assert backend(second).open(again).key.reveal() == KEY
    assert "fewer than 5" in refusal(second, blob).message  # four parts since it was sealed first


def test_three_parts_at_once_are_refused_and_named_by_their_models(tmp_path: Path) -> None:
    blob = sealed(laid("server", tmp_path / "0"))
    changed = laid(
        "server",
        tmp_path / "1",
        disks={"sda": NEW_DISK},
        ports={"ens1f0": NEW_CARD, "ens1f1": None},
        modules={"1": NEW_MODULE},
    )
    carry(tmp_path / "0", changed, uefi=True)
    told = refusal(changed, blob).message
    assert "gone: network port ens1f0 (i40e), disk sda (SSDSC2KB960G8R)" in told
    assert "in their place: network port ens1f0 (ice), disk sda (Other SSD)" in told
    assert "maybe others:" in told


def test_a_flashed_firmware_that_forgot_its_numbers_is_two_parts_at_most(tmp_path: Path) -> None:
    own = {"sys/class/dmi/id/product_uuid": "0b93d6c4-2e1f-4c7a-9d80-5a6f7e3b1c22"}
    blob = sealed(laid("server", tmp_path / "0", files=own))
    empty = {**TO_BE_FILLED, "sys/class/dmi/id/product_uuid": "03000200-0400-0500-0006-000700080009"}
    flashed = laid("server", tmp_path / "1", files={**empty, "sys/class/dmi/id/chassis_serial": "None"})
    carry(tmp_path / "0", flashed, uefi=True)
    opened = backend(flashed).open(blob)
    assert opened.key.reveal() == KEY
    assert len(opened.warnings) == 2
    assert backend(flashed).report().of == 7  # second ones of other kinds stand in


def test_a_cleared_firmware_is_named(tmp_path: Path) -> None:
    blob = sealed(laid("mini_pc", tmp_path))
    uefi = boxes.at(tmp_path).uefi
    assert uefi is not None
    uefi.remove()
    error = refusal(tmp_path, blob)
    assert "UEFI variables that the vault was sealed with is gone" in error.message
    assert "Resetting or reflashing the firmware" in error.remedy
    assert "millwright vault recover" in error.remedy


def test_sealed_without_uefi_and_configured_with_it_it_is_sealed_anew(tmp_path: Path) -> None:
    blob = sealed(laid("mini_pc", tmp_path), CHEAP_WITHOUT_UEFI)
    opened = backend(tmp_path).open(blob)
    assert opened.reseal
    assert "without a secret in the UEFI variables" in opened.warnings[0]
    again = backend(tmp_path).seal(opened.key)
    assert backend(tmp_path).open(again).warnings == ()
    assert backend(tmp_path, CHEAP_WITHOUT_UEFI).open(again).key.reveal() == KEY


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_efivars_that_are_not_mounted_stop_the_sealing(tmp_path: Path) -> None:
    root = laid("mini_pc", tmp_path)
    shutil.rmtree(root / EFIVARS)
    (root / EFIVARS).mkdir()  # as the kernel leaves it
    with pytest.raises(BindingError, match="efivarfs is not mounted") as caught:
        sealed(root)
    assert "uefi = false" in caught.value.remedy
    assert not (root / HOST_SECRET).exists()
    assert sealed(root, CHEAP_WITHOUT_UEFI)


def test_a_damaged_host_secret_is_named_and_kept(tmp_path: Path) -> None:
    blob = sealed(laid("router", tmp_path))
    (tmp_path / HOST_SECRET).write_bytes(b"half")
    assert "holds 4 bytes, not 32" in refusal(tmp_path, blob).message
    with pytest.raises(BindingError, match="holds 4 bytes, not 32"):
        sealed(tmp_path)
    assert (tmp_path / HOST_SECRET).read_bytes() == b"half"


# ---- what it says of itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "needed", "of", "stolen_bits", "strength"),
    [
        ("server", 5, 7, 256 + 4 * 24, 20),
        ("mini_pc", 3, 4, 256 + 48, 20),
        ("router", 3, 3, 48, 15),
        ("board", 3, 3, 51, 15),
        ("vm", 1, 1, 64, 15),
        ("micro_vm", 0, 0, 0, 15),
    ],
)
def test_the_report(name: str, needed: int, of: int, stolen_bits: int, strength: int, tmp_path: Path) -> None:
    keeper = backend(laid(name, tmp_path))
    report = keeper.report()
    assert (report.needed, report.of) == (needed, of)
    assert report.stolen_bits == stolen_bits
    assert keeper.promise.strength == strength
    assert sum(row.used for row in report.rows) == of + 1 + report.uefi
    values = [factor.value for factor in candidates(boxes.at(tmp_path).facts().facts)]
    assert not [value for value in values if value in str(report).lower()]
    assert all(what and bits.isdigit() and why for what, bits, why in report.table())


def test_without_uefi_the_promise_says_what_a_thief_of_the_disk_can_do(tmp_path: Path) -> None:
    with_uefi, without = (backend(laid(name, tmp_path / name)).promise for name in ("mini_pc", "router"))
    assert "a stolen disk" in with_uefi.protects
    assert "a stolen disk" not in without.protects
    assert any(word.startswith("a stolen disk") for word in without.does_not)
    assert any("root on this box" in word for word in with_uefi.does_not)


def test_this_machine_opens_or_says_why_not(tmp_path: Path) -> None:
    """As it is; its UEFI variables are not touched."""
    keeper = fingerprint.create(CHEAP_WITHOUT_UEFI, Box(host_secret=tmp_path / "secret"))
    if keeper.report().sufficient:
        assert keeper.open(keeper.seal(Secret(KEY))).key.reveal() == KEY
    else:
        with pytest.raises(BindingError, match="too little of its own"):
            keeper.seal(Secret(KEY))
