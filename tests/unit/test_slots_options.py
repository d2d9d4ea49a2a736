"""The firmware's boot options: ours come first and are written once, others' stay."""

import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.slots import TRIES, SlotError, options
from hardware.slots.options import Partition

WHERE = Partition(1, 2048, 1_048_576, UUID("a5c58e5c-e6b3-4312-bfd1-8ee6708aac04"))
LOADER = options.LOADERS["x86_64"]
OTHER = struct.pack("<IH", 1, 4) + "UEFI Misc Device\0".encode("utf-16-le") + b"\x7f\xff\x04\x00"
FOREIGN = st.dictionaries(st.integers(0, 20), st.binary(max_size=80).map(lambda tail: OTHER + tail), max_size=8)


def test_an_option_names_the_partition_and_the_loader() -> None:
    raw = options.encode("Millwright 1", WHERE, LOADER)
    assert options.name_of(raw) == "Millwright 1"
    attributes, length = struct.unpack_from("<IH", raw)
    path = raw[6 + 2 * len("Millwright 1\0") :]
    assert (attributes, length) == (1, len(path))
    assert struct.unpack_from("<BBHIQQ", path) == (4, 1, 42, 1, 2048, 1_048_576)
    assert UUID(bytes_le=path[24:40]) == WHERE.id
    assert path.endswith("\\systemd-bootx64.efi\0".encode("utf-16-le") + b"\x7f\xff\x04\x00")


@given(FOREIGN, st.lists(st.integers(0, 20), max_size=8, unique=True))
def test_ours_come_first_once_more_than_there_are_tries(found: dict[int, bytes], order: list[int]) -> None:
    made = options.change(found, order, WHERE, LOADER)
    after = {**found, **made.options}
    assert not found.keys() & made.options.keys()  # nobody else's is written over
    assert made.order is not None
    ours, others = made.order[: TRIES + 1], made.order[TRIES + 1 :]
    assert {options.name_of(after[number]) for number in ours} == {f"Millwright {n}" for n in range(1, TRIES + 2)}
    assert others == tuple(number for number in order if number not in ours)
    assert options.change(after, made.order, WHERE, LOADER) == options.Change({}, None)


def test_options_of_an_older_disk_are_written_over() -> None:
    first = options.change({}, [], Partition(1, 2048, 4096, UUID(int=1)), LOADER)
    again = options.change(first.options, first.order or (), WHERE, LOADER)
    assert again.options.keys() == first.options.keys()
    assert again.order is None


def test_a_firmware_without_room_is_told_of() -> None:
    with pytest.raises(SlotError, match="no room"):
        options.change(dict.fromkeys(range(options.MAX_OPTIONS), OTHER), [], WHERE, LOADER)


def test_they_are_read_and_written_as_the_firmware_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True)
    (folder / f"Boot0001-{options.GLOBAL}").write_bytes(b"\7\0\0\0" + OTHER)
    (folder / f"BootOrder-{options.GLOBAL}").write_bytes(b"\7\0\0\0" + b"\1\0")
    made = options.keep(WHERE, tmp_path, "x86_64")
    assert made.order == (0, 2, 3, 4, 1)
    assert (folder / f"BootOrder-{options.GLOBAL}").read_bytes() == b"\7\0\0\0" + bytes([0, 0, 2, 0, 3, 0, 4, 0, 1, 0])
    assert (folder / f"Boot0002-{options.GLOBAL}").read_bytes()[4:] == options.encode("Millwright 2", WHERE, LOADER)
    assert options.keep(WHERE, tmp_path, "x86_64") == options.Change({}, None)


def test_the_loader_is_that_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "sys/firmware/efi/efivars").mkdir(parents=True)
    options.keep(WHERE, tmp_path, "aarch64")
    raw = (tmp_path / f"sys/firmware/efi/efivars/Boot0000-{options.GLOBAL}").read_bytes()
    assert raw.endswith("\\systemd-bootaa64.efi\0".encode("utf-16-le") + b"\x7f\xff\x04\x00")
    with pytest.raises(SlotError, match="no boot loader for a processor 'riscv64'"):
        options.keep(WHERE, tmp_path, "riscv64")


def test_a_loader_that_does_not_say_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(SlotError, match="does not say"):
        options.boot_partition(tmp_path)


def test_a_partition_of_a_disk_that_was_just_written(tmp_path: Path) -> None:
    """Its place is told in the disk's own sectors, here of 4096 bytes; /sys counts by 512."""
    disk, links, device = tmp_path / "sys/block/nvme0n1", tmp_path / "dev/disk/by-partuuid", tmp_path / "dev/nvme0n1p1"
    (disk / "queue").mkdir(parents=True)
    (disk / "queue/logical_block_size").write_text("4096\n")
    (disk / "nvme0n1p1").mkdir()
    for name, number in (("partition", 1), ("start", 2048), ("size", 1048576)):
        (disk / "nvme0n1p1" / name).write_text(f"{number}\n")
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "sys/class/block/nvme0n1p1").symlink_to(disk / "nvme0n1p1")
    links.mkdir(parents=True)
    device.touch()
    (links / str(WHERE.id)).symlink_to(device)
    assert options.partition(device, tmp_path) == options.Partition(1, 256, 131072, WHERE.id)
    with pytest.raises(SlotError, match="no partition with an id"):
        options.partition(tmp_path / "dev/sda1", tmp_path)
