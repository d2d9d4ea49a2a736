"""The vault's file after its disk has gone bad, or somebody had it in hand: what it holds is right, or said to be
missing, and never anything else.

    MILLWRIGHT_FUZZ_FILES=200000 MILLWRIGHT_FUZZ_SEED=2 pytest tests/faults/test_vault_rot.py -k fuzz
"""

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import cbor2
import pytest

from appliance.errors import BindingError, MillwrightError, SealError, VaultError
from appliance.vault import keyring, layout
from appliance.vault.secret import Secret
from tests.vaults import START, Box, Place, held

CONTENT = {"mqtt/plant": b"pump", "mqtt/office": b"desk", "tls/key": b"k" * 40}
SEED = 1
FUZZ_SEED = int(os.environ.get("MILLWRIGHT_FUZZ_SEED", "1"))
FUZZED = int(os.environ.get("MILLWRIGHT_FUZZ_FILES", "1500"))


@pytest.fixture(scope="module")
def place() -> Place:
    """Without a counter: what is found out here is found out without one."""
    place = Place(counting=False)
    place.make(CONTENT).close()
    return place


@pytest.fixture(scope="module")
def sound(place: Place) -> bytes:
    first, second = place.copies()
    assert first == second is not None
    return first


def flipped(content: bytes, at: int, mask: int) -> bytes:
    return content[:at] + bytes((content[at] ^ mask,)) + content[at + 1 :]


def frames(content: bytes) -> list[bytes]:
    """Cut at their lengths."""
    found, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at + 5)
        found.append(content[at : at + 13 + length])
        at += 13 + length
    return found


def frame(kind: bytes, payload: bytes) -> bytes:
    head = kind + struct.pack(">I", len(payload))
    return b"\x9bMWV" + head + struct.pack(">I", zlib.crc32(payload, zlib.crc32(head))) + payload


def test_an_independent_reader_finds_the_frames(sound: bytes) -> None:
    """As the README tells it."""
    parts = frames(sound)
    assert b"".join(frame(part[4:5], part[13:]) for part in parts) == sound
    assert [part[4:5] for part in parts] == [b"R", b"S", b"S", b"S", b"R"]
    assert parts[0] == parts[-1]
    body, mac = cbor2.loads(parts[0][13:])
    fields = cbor2.loads(body)
    assert (len(mac), len(fields)) == (32, 13)
    form, purpose, vault, suite, epoch, generation, anchor, created, written, box, bindings, recipients, _ = fields
    assert (form, purpose, suite, epoch, generation, anchor, box) == (1, 0, 1, 1, 4, [], b"here")
    assert START < created < written
    assert len(vault) == 16
    assert [one[0] for one in bindings] == [b"board"]
    assert [one[0] for one in recipients] == [b"recovery"]


def test_any_byte_of_one_copy(place: Place, sound: bytes) -> None:
    """It is mended from the other one, and told."""
    dice = random.Random(SEED)
    for at in range(len(sound)):
        number = dice.randrange(2)
        copies = [sound, sound]
        copies[number] = flipped(sound, at, dice.randint(1, 255))
        place.lay(*copies)
        with place.open() as vault:
            assert held(vault) == CONTENT
            status = vault.status()
        assert status.damaged == ()
        assert status.warnings == (f"copy {number + 1} of the vault's file was damaged and is mended",)
        assert place.copies() == [sound, sound]


def test_any_byte_of_both_copies(place: Place, sound: bytes) -> None:
    """At most one secret is missing, its name is told, and it can be put again."""
    dice = random.Random(SEED)
    missing = 0
    for at in range(len(sound)):
        wrong = flipped(sound, at, dice.randint(1, 255))
        place.lay(wrong, wrong)
        with place.open() as vault:
            status = vault.status()
            assert len(status.damaged) <= 1
            assert held(vault) == {name: CONTENT[name] for name in CONTENT if name not in status.damaged}
            assert [one.name for one in vault.entries()] == sorted(CONTENT)
            assert len(status.warnings) == 2
        missing += len(status.damaged)
    assert missing == sum(len(part) for part in frames(sound)[1:-1])


def test_a_secret_whose_record_is_damaged(place: Place, sound: bytes) -> None:
    broken = sound.replace(frames(sound)[1], b"")
    place.lay(broken, broken)
    with place.open() as vault:
        (name,) = vault.status().damaged
        with pytest.raises(SealError, match=f"'{name}' is damaged in both copies"):
            vault.get(name)
        for layer, words in (("secret", name), ("namespace", "mqtt")):
            with pytest.raises(SealError, match=name):
                vault.rotate(layer, words)  # type: ignore[arg-type]
        vault.rotate("key")
    with place.open() as vault:
        assert vault.status().damaged == (name,)
        assert vault.put(name, Secret(b"again")).version == 2
        assert vault.status().damaged == ()
        vault.rotate("namespace", "mqtt")
    with place.open() as vault:
        assert held(vault) == {**CONTENT, name: b"again"}


def test_rot_in_different_places_of_both_copies(place: Place, sound: bytes) -> None:
    """Each has what the other lacks."""
    dice, parts = random.Random(SEED), frames(sound)
    for _ in range(200):
        copies = [list(parts), list(parts)]
        for number, part in enumerate(parts):
            copy = copies[dice.randrange(2)]
            copy[number] = flipped(part, dice.randrange(len(part)), dice.randint(1, 255))
        place.lay(*(b"".join(copy) for copy in copies))
        with place.open() as vault:
            assert (held(vault), vault.status().damaged) == (CONTENT, ())
        assert place.copies() == [sound, sound]


@pytest.mark.parametrize("other", [None, b"", b"\x00" * 5000, b"not a vault"])
def test_one_copy_is_gone_or_something_else(place: Place, sound: bytes, other: bytes | None) -> None:
    for copies in ((sound, other), (other, sound)):
        place.lay(*copies)
        with place.open() as vault:
            assert held(vault) == CONTENT
            state = "damaged" if other else "missing"
            assert [state in warning for warning in vault.status().warnings] == [True]
        assert place.copies() == [sound, sound]


def test_both_are_beyond_reading(place: Place) -> None:
    place.lay(b"x", b"\x00" * 1000)
    with pytest.raises(SealError, match="damaged in both copies"):
        place.open()
    assert place.copies() == [b"x", b"\x00" * 1000]


def test_cut_short_anywhere(place: Place, sound: bytes) -> None:
    for length in range(len(sound)):
        place.lay(sound[:length], sound[:length])
        try:
            with place.open() as vault:
                found, damaged = held(vault), vault.status().damaged
        except VaultError:
            assert length < len(frames(sound)[0])
        else:
            assert found == {name: CONTENT[name] for name in CONTENT if name not in damaged}


def test_frames_out_of_order_twice_or_with_rubbish_between(place: Place, sound: bytes) -> None:
    dice = random.Random(SEED)
    for _ in range(50):
        parts = frames(sound) + [dice.randbytes(dice.randrange(60)) for _ in range(4)] + frames(sound)[1:3]
        dice.shuffle(parts)
        place.lay(b"".join(parts), None)
        with place.open() as vault:
            assert (held(vault), vault.status().damaged) == (CONTENT, ())
        assert place.copies() == [sound, sound]


def test_a_secret_taken_out_of_the_file_is_missed(place: Place, sound: bytes) -> None:
    parts = frames(sound)
    for number in (1, 2, 3):
        less = b"".join(parts[:number] + parts[number + 1 :])
        place.lay(less, less)
        with place.open() as vault:
            assert len(vault.status().damaged) == 1


def test_a_record_of_an_older_file_is_not_taken(place: Place, sound: bytes) -> None:
    place.lay(sound, sound)
    with place.open() as vault:
        vault.put("tls/key", Secret(b"new"))
        newer = place.copies()[0]
    assert newer is not None
    old, new = frames(sound), frames(newer)
    (changed,) = [number for number in range(5) if number not in (0, 4) and old[number] not in new]
    mixed = b"".join([*new[:changed], old[changed], *new[changed + 1 :]])
    place.lay(mixed, mixed)
    with place.open() as vault:
        assert vault.status().damaged == ("tls/key",)
        assert held(vault) == {name: CONTENT[name] for name in ("mqtt/plant", "mqtt/office")}


# ---- with intent ----------------------------------------------------------------------------------------------------


def test_files_of_two_vaults_of_one_box(place: Place, sound: bytes) -> None:
    """Whichever root opens first, its secrets are those of one vault and of no other."""
    other = Place(counting=False)
    other.box = place.box
    other.make({"mqtt/plant": b"of another"}).close()
    theirs = other.copies()[0]
    assert theirs is not None
    for copies in ((sound, theirs), (theirs, sound)):
        place.lay(*copies)
        with place.open() as vault:
            assert held(vault) == CONTENT  # of the higher generation
            assert vault.status().damaged == ()
            assert "the file of another vault lay beside it, and is kept as `.replaced`" in vault.status().warnings
        assert theirs in [place.disk.read(place.folder / f"vault.{number}.replaced", 1 << 20) for number in (1, 2)]
    mixed = b"".join([frames(sound)[0], *frames(theirs)[1:-1], frames(sound)[0]])
    place.lay(mixed, mixed)
    with place.open() as vault:
        assert held(vault) == {}
        assert len(vault.status().damaged) == 3


HEADERS: dict[str, Callable[[layout.Head], layout.Head]] = {
    "suite": lambda head: replace(head, suite=2),
    "suite of no release": lambda head: replace(head, suite=77),
    "epoch": lambda head: replace(head, epoch=head.epoch + 1),
    "generation": lambda head: replace(head, generation=head.generation + 100),
    "anchor": lambda head: replace(head, anchor=5),
    "vault": lambda head: replace(head, vault=bytes(16)),
    "box": lambda head: replace(head, box="there"),
    "recipient": lambda head: replace(
        head, wrapped=(replace(head.wrapped[0], recipient=replace(head.wrapped[0].recipient, public=bytes(33))),)
    ),
}


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_that_was_changed(place: Place, sound: bytes, name: str) -> None:
    """With its checksums made right: the MAC tells, and where there is a copy that nobody touched it is taken."""
    root = layout.read_root(frames(sound)[0][13:])
    body = layout.body_of(HEADERS[name](root.head), root.index)
    forged = frame(b"R", cbor2.dumps([body, root.mac]))
    altered = b"".join([forged, *frames(sound)[1:-1], forged])
    place.lay(altered, altered)
    with pytest.raises((BindingError, SealError), match=r"altered, or is another|no suite 77"):
        place.open()
    assert place.copies() == [altered, altered]
    place.lay(sound, altered)
    with place.open() as vault:
        assert held(vault) == CONTENT
        assert place.copies() == [sound, sound]
        later = name == "generation"
        assert any("a later state of the file does not open" in one for one in vault.status().warnings) == later
    if later:
        assert place.disk.read(place.folder / "vault.2.replaced", 1 << 20) == altered


def test_a_later_root_whose_bindings_do_not_open_but_whose_key_is_known(place: Place, sound: bytes) -> None:
    """What was acknowledged is not given up for an older state that happens to open."""
    place.lay(sound, sound)
    with place.open() as vault:
        ring = vault._opened()
    ring = keyring.bound(keyring.put(ring, "mqtt/new", Secret(b"new"), START), ring.head.bindings[:0])
    ring, root = keyring.seal(ring, ring.head.generation + 1, None, START)
    place.lay(layout.assemble(root, ring.records()), sound)
    with place.open() as vault:
        assert held(vault) == {**CONTENT, "mqtt/new": b"new"}


def test_a_hostile_file_does_not_ask_the_backend_for_ever(place: Place, sound: bytes) -> None:
    root = layout.read_root(frames(sound)[0][13:])
    forged = []
    for number in range(500):
        head = replace(root.head, generation=1000 + number)
        forged.append(frame(b"R", cbor2.dumps([layout.body_of(head, root.index), root.mac])))
    place.lay(b"".join(forged), None)
    place.box.asked = 0
    with pytest.raises(BindingError):
        place.open()
    assert place.box.asked == 1  # one blob, however many roots have it


def test_a_newer_release_has_written_it(place: Place, sound: bytes) -> None:
    root = layout.read_root(frames(sound)[0][13:])
    body = cbor2.dumps([2, "something", {"quite": "different"}])
    newer = frame(b"R", cbor2.dumps([body, root.mac])) + b"\x9bMWVX"
    for copies in ((newer, newer), (sound, newer), (newer, sound)):
        place.lay(*copies)
        with pytest.raises(VaultError, match="has format 2; this release knows 1") as caught:
            place.open()
        with pytest.raises(VaultError, match="has format 2"):
            place.recover(Box())
        assert "newer release" in caught.value.remedy
        assert place.copies() == list(copies)


def test_sizes_that_are_lies(place: Place) -> None:
    """Bounded before anything is allocated for them."""
    huge = b"\x9bMWVR" + b"\xff\xff\xff\xff" + bytes(4)
    marks = b"\x9bMWVR\x00\x40\x00\x00\x00\x00\x00\x00"
    body = cbor2.dumps([1, 0, bytes(16), 1, 1, 1, [], 0, 0, b""])
    for content in (
        huge,
        huge * 1000,
        marks * 400_000,
        frame(b"R", b"\x82\x5b" + b"\xff" * 8),
        frame(b"R", cbor2.dumps([b"\x9b" + b"\xff" * 8, bytes(32)])),
        frame(b"R", cbor2.dumps([b"\x8d" + body[1:] + b"\x9a\xff\xff\xff\xff", bytes(32)])),
        frame(b"R", b"\x81" * 100_000),
        b"\x9bMWV" * 1_000_000,
    ):
        place.lay(content, content)
        with pytest.raises(SealError, match="damaged in both"):
            place.open()


def test_fuzz(place: Place, sound: bytes) -> None:
    """Whatever stands there: right content, or a refusal of ours."""
    dice = random.Random(FUZZ_SEED)
    opened = 0
    for _ in range(FUZZED):
        wrong = [mangled(sound, dice) if dice.random() < 0.8 else sound for _ in range(2)]
        place.lay(*wrong)
        try:
            with place.open() as vault:
                damaged = vault.status().damaged
                assert held(vault) == {name: CONTENT[name] for name in CONTENT if name not in damaged}
        except MillwrightError:
            continue
        opened += 1
    assert FUZZED / 4 < opened < FUZZED


def mangled(content: bytes, dice: random.Random) -> bytes:
    """With checksums made right half of the time, so that what lies behind them is met, too."""
    parts = frames(content)
    for _ in range(dice.randint(1, 3)):
        number = dice.randrange(len(parts))
        part = bytearray(parts[number])
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(part))
            choice = dice.randrange(3)
            part[at : at + (choice > 0)] = dice.randbytes(dice.randrange(4)) if choice else dice.randbytes(1)
        parts[number] = frame(bytes(part[4:5]), bytes(part[13:])) if dice.random() < 0.5 else bytes(part)
    return b"".join(parts)
