"""tools/flash: block maps, disks that must not be written to, images that are damaged, disks that lie."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hardware import disks
from tools.imaging import bmap, flash
from tools.imaging.bmap import BmapError, Range

BLOCK = 4096
CONTENT = b"".join(
    bytes(BLOCK) if number % 3 else hashlib.sha256(bytes([number])).digest() * (BLOCK // 32) for number in range(40)
)


def block_map(content: bytes, checksums: bool = True) -> bytes:
    """As bmaptool writes it."""
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    spans: list[list[int]] = []
    for number, block in enumerate(blocks):
        if not block.strip(b"\0"):
            continue
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    lines = []
    for first, last in spans:
        told = hashlib.sha256(content[first * BLOCK : (last + 1) * BLOCK]).hexdigest()
        text = f"{first}-{last}" if last > first else f"{first}"
        lines.append(f'<Range chksum="{told}"> {text} </Range>' if checksums else f"<Range> {text} </Range>")
    mapped = sum(last - first + 1 for first, last in spans)
    kind = "<ChecksumType> sha256 </ChecksumType>" if checksums else ""
    own = f"<BmapFileChecksum> {'0' * 64} </BmapFileChecksum>" if checksums else ""
    text = (
        f'<?xml version="1.0" ?>\n<!-- what it is -->\n<bmap version="2.0">\n<ImageSize> {len(content)} </ImageSize>'
        f"<BlockSize> {BLOCK} </BlockSize><BlocksCount> {len(blocks)} </BlocksCount>"
        f"<MappedBlocksCount> {mapped} </MappedBlocksCount>{kind}{own}<BlockMap>{''.join(lines)}</BlockMap></bmap>"
    )
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()).encode()


class Site:
    """An image with all that lies beside it, and a file in place of a disk."""

    def __init__(self, folder: Path, content: bytes = CONTENT, packed: bool = True) -> None:
        self.folder, self.content = folder, content
        self.image = folder / ("box.img.zst" if packed else "box.img")
        self.image.write_bytes(zstandard.compress(content) if packed else content)
        (folder / "box.img.bmap").write_bytes(block_map(content))
        self.sums()
        self.device = folder / "disk"

    def sums(self) -> None:
        paths = [path for path in self.folder.glob("box.*") if path.is_file()]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(paths)]
        (self.folder / "SHA256SUMS").write_text("".join(lines))

    def flash(self, *words: str) -> int:
        return flash.main([str(self.image), str(self.device), "--yes", "disk", *words])


@pytest.fixture(params=[True, False], ids=["zst", "img"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, packed=request.param)


def test_an_image_is_written_and_read_back(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.flash() == 0
    assert site.device.read_bytes() == CONTENT
    said = capsys.readouterr().out
    assert "checksum right, signature not checked" in said
    assert f"{14 * BLOCK:,} bytes written and read back" in said


def test_only_what_the_map_names_is_written(tmp_path: Path) -> None:
    site = Site(tmp_path, CONTENT + bytes(64 << 20))
    assert site.flash() == 0
    assert site.device.stat().st_size == len(site.content)
    assert site.device.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("name", ["image", "map", "both"])
def test_without_a_map_or_checksums(site: Site, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name != "image":
        (site.folder / "box.img.bmap").unlink()
        site.sums()
    if name != "map":
        (site.folder / "SHA256SUMS").unlink()
        assert site.flash() == 1
        assert "--unchecked" in capsys.readouterr().err
        assert not site.device.exists()
    assert site.flash("--unchecked") == 0
    assert site.device.read_bytes() == CONTENT


def test_a_map_without_checksums(site: Site) -> None:
    (site.folder / "box.img.bmap").write_bytes(block_map(CONTENT, checksums=False))
    site.sums()
    assert site.flash() == 0
    assert site.device.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["box.img.zst", "box.img.bmap"])
def test_a_file_that_is_not_what_was_published(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(tmp_path)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / name).write_bytes(raw)
    assert site.flash() == 1
    assert f"{name} is not what SHA256SUMS says" in capsys.readouterr().err
    assert not site.device.exists()


def test_damage_is_seen_without_checksums_beside_it_too(tmp_path: Path) -> None:
    site = Site(tmp_path, packed=False)
    site.image.write_bytes(CONTENT[:-BLOCK] + b"x" * BLOCK)
    site.sums()
    assert site.flash() == 1
    site.image.write_bytes(CONTENT[: len(CONTENT) // 2])
    site.sums()
    assert site.flash() == 1


def test_a_packed_image_that_ends_too_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(tmp_path)
    site.image.write_bytes(site.image.read_bytes()[:-20])
    site.sums()
    assert site.flash() == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize("keeps", [lambda raw: raw[:BLOCK] + bytes(len(raw) - BLOCK), lambda raw: raw[: 5 * BLOCK]])
def test_a_disk_that_does_not_keep_what_it_is_given(tmp_path: Path, keeps: Callable[[bytes], bytes]) -> None:
    (path := tmp_path / "disk").write_bytes(keeps(CONTENT))
    plan = bmap.parse(block_map(CONTENT))
    with path.open("r+b") as disk, pytest.raises(flash.FlashError, match=r"other bytes|less room"):
        flash.read_back(plan, disk, lambda what, done, length: None)


def test_nobody_confirms(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert flash.main([str(site.image), str(site.device), "--yes", "dsik"]) == 4
    assert flash.main([str(site.image), str(site.device)]) == 1
    assert "--yes disk" in capsys.readouterr().err
    assert not site.device.exists()


def test_the_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What gpgv says decides. In its place stands a program that takes a signature for good that says so; with gpgv
    itself it was tried by hand."""
    site = Site(tmp_path)
    (programs := tmp_path / "bin").mkdir()
    asked = '[ "$1" = --keyring ] && [ -f "$2" ] && grep -q good "$3" && [ -f "$4" ]'
    (gpgv := programs / "gpgv").write_text(f"#!/bin/sh\n{asked} || {{ echo BAD >&2; exit 1; }}\n")
    gpgv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    key, signature = tmp_path / "update.gpg", tmp_path / "SHA256SUMS.gpg"
    key.write_bytes(b"")
    for content in ("", "bad"):
        signature.write_text(content)
        assert site.flash("--key", str(key)) == 1
        assert "the signature of SHA256SUMS is not good: BAD" in capsys.readouterr().err
        assert not site.device.exists()
    signature.write_text("good")
    assert site.flash("--key", str(key)) == 0
    assert "signature good" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["/dev/null", "/proc/version"])
def test_what_is_no_disk(site: Site, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flash.main([str(site.image), device, "--yes", Path(device).name]) == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize("sector", [512, 4096])
def test_which_sectors_a_partition_table_is_for(tmp_path: Path, sector: int) -> None:
    (path := tmp_path / "box.img").write_bytes(bytes(sector) + b"EFI PART" + bytes(9000))
    assert flash.sector_of(path) == sector
    path.write_bytes(bytes(9000))
    assert flash.sector_of(path) == 0


# ---- block maps -----------------------------------------------------------------------------------------------------


def test_a_map_reads_back() -> None:
    found = bmap.parse(block_map(CONTENT))
    assert found.image_bytes == len(CONTENT)
    assert found.ranges[0] == Range(0, BLOCK, hashlib.sha256(CONTENT[:BLOCK]).hexdigest())
    assert found.mapped_bytes == 14 * BLOCK


def test_an_image_that_does_not_end_with_a_block() -> None:
    content = CONTENT[: -BLOCK + 100] + b"end"
    assert bmap.parse(block_map(content)).ranges[-1].end == len(content)


RIGHT = block_map(CONTENT, checksums=False).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<bmap/>",
        RIGHT.replace('version="2.0"', 'version="3.0"'),
        RIGHT.replace("<BlockSize> 4096", "<BlockSize> 1000"),
        RIGHT.replace("<Range> 3 ", "<Range> 300 "),
        RIGHT.replace("<Range> 3 ", "<Range> -3 "),
        RIGHT.replace("<Range> 3 ", "<Range> 0 "),
        RIGHT.replace("<MappedBlocksCount> 14", "<MappedBlocksCount> 15"),
        RIGHT.replace("<ImageSize> ", "<ImageSize> 9"),
        RIGHT.replace("<BlockMap>", "<ChecksumType> sha256 </ChecksumType><BlockMap>"),
        RIGHT.replace("<BlockMap>", "<a><b><c/></b></a><BlockMap>"),
        RIGHT.replace("<bmap", '<!DOCTYPE x [<!ENTITY a "b">]><bmap'),
        RIGHT.replace("<bmap", "<?php x ?><bmap"),
        RIGHT[:-3],
    ],
)
def test_maps_that_are_none(text: str) -> None:
    with pytest.raises(BmapError):
        bmap.parse(text.encode())


def test_a_map_that_was_altered() -> None:
    with pytest.raises(BmapError, match="altered"):
        bmap.parse(block_map(CONTENT).replace(b"what it is", b"what it was"))


@given(at=st.integers(0, len(RIGHT) - 1), byte=st.integers(0, 255))
def test_any_damage_is_a_map_within_bounds_or_none(at: int, byte: int) -> None:
    raw = bytearray(RIGHT.encode())
    raw[at] = byte
    try:
        found = bmap.parse(bytes(raw))
    except BmapError:
        return
    assert all(0 <= one.start < one.end <= found.image_bytes for one in found.ranges)


# ---- disks ----------------------------------------------------------------------------------------------------------


def machine(root: Path) -> Path:
    """A system on nvme0n1; sticks: one mounted, one free, one with swap, one that holds an opened volume."""
    files = {"proc/swaps": "Filename Type Size\n/dev/sdc1 partition 9 0 -2\n", "proc/self/mountinfo": ""}
    for number, (name, part) in enumerate({"nvme0n1": "p1", "sda": "1", "sdb": "1", "sdc": "1", "sdd": "1"}.items()):
        base = f"sys/block/{name}"
        files |= {
            f"{base}/size": "62500000", f"{base}/dev": f"8:{number * 16}", f"{base}/queue/logical_block_size": "512",
            f"{base}/removable": "1", f"{base}/ro": "0",
            f"{base}/device/vendor": "ACME  ", f"{base}/device/model": "Stick",
            f"{base}/{name}{part}/partition": "1", f"{base}/{name}{part}/dev": f"8:{number * 16 + 1}",
        }  # fmt: skip
    files |= {"sys/block/loop0/size": "8", "sys/block/sde/size": "0"}
    files["proc/self/mountinfo"] = (
        "22 1 8:1 / / rw - ext4 /dev/nvme0n1p1 rw\n23 22 8:17 / /media/my\\040stick rw - vfat /dev/sda1 rw\n"
        "24 22 254:0 / /secret rw - ext4 /dev/mapper/x rw\n"
    )
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    holder = root / "sys/devices/virtual/block/dm-0"
    holder.mkdir(parents=True)
    (holder / "dev").write_text("254:0")
    (root / "sys/block/sdd/sdd1/holders").mkdir()
    (root / "sys/block/sdd/sdd1/holders/dm-0").symlink_to(holder)
    return root


def test_what_uses_a_disk(tmp_path: Path) -> None:
    found = {disk.name: disk for disk in disks.find(machine(tmp_path))}
    assert list(found) == ["nvme0n1", "sda", "sdb", "sdc", "sdd"]
    assert {name: disks.refusal(disk, 1) for name, disk in found.items()} == {
        "nvme0n1": "this system runs from it",
        "sda": "it is in use: /media/my stick",
        "sdb": "",
        "sdc": "it is in use: swap on /dev/sdc1",
        "sdd": "it is in use: /secret, held by dm-0",
    }
    assert disks.refusal(found["sdb"], 64 << 30).startswith("it has 32,000,000,000 bytes")
    table = flash.table(list(found.values()))
    assert "ACME Stick, removable" in table[1]
    assert "32.0 GB" in table[3]


def test_a_disk_that_can_only_be_read(tmp_path: Path) -> None:
    (machine(tmp_path) / "sys/block/sdb/ro").write_text("1")
    assert disks.refusal(disks.read("sdb", tmp_path), 1) == "it can only be read"


def test_a_disk_with_other_sectors(tmp_path: Path) -> None:
    site = Site(tmp_path, bytes(512) + b"EFI PART" + bytes(BLOCK * 4 - 520))
    plan = flash.mapped(site.image)
    four = disks.Disk("sdb", 64 << 30, "4Kn", 4096, True, False, ())
    with pytest.raises(flash.FlashError, match="sectors of 4096 bytes"):
        flash._refuse(four, site.image, plan)


def test_the_disks_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert flash.main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("DISK")
    assert flash.main([]) == 2
