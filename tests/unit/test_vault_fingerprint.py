"""k of n parts and the box's secrets open a key, and nothing else does; hostile blobs cost nothing."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BindingError, SealError
from appliance.vault import fingerprint, suites
from appliance.vault.factors import Factor, Slot
from appliance.vault.fingerprint import MAX_MEMORY_KIB, MIN_MEMORY_KIB, Cost, affordable, parse, unlock

KEY = bytes(range(32))
SALT = bytes(range(100, 132))
SECRETS = {"host": b"h" * 32, "uefi": b"u" * 32}
CHEAP = Cost(MIN_MEMORY_KIB, 1)
SERVER = [
    Factor(Slot("system-uuid", "", "Board 7"), "4c4c454400433510", 24),
    Factor(Slot("serial", "", "Board 7"), "7c5rm12", 21),
    Factor(Slot("cpu-serial", "", "Xeon"), "0x2b3f1c90d47ae586", 32),
    Factor(Slot("nic", "eno1", "tg3"), "b07b25c10e54", 24),
    Factor(Slot("nic", "ens1f0", "i40e"), "3cfdfea49218", 24),
    Factor(Slot("memory", "A1", "M391"), "3825f0c1", 24),
    Factor(Slot("disk", "sda", "SSD"), "phyf204300ab960cgn", 32),
]
N, K = 7, 5


def sealed(parts: Sequence[Factor] = SERVER, needed: int = K, secrets: dict[str, bytes] = SECRETS) -> bytes:
    return fingerprint.seal(KEY, secrets, parts, needed, SALT, CHEAP)


BLOB = sealed()


def replaced(*indices: int, parts: Sequence[Factor] = SERVER) -> list[Factor]:
    return [replace(part, value=f"new{part.value}") if at in indices else part for at, part in enumerate(parts)]


def resealed(blob: bytes, header: list[object] | None = None, wraps: bytes | None = None) -> bytes:
    """As somebody would alter it who knows the format: with a checksum that fits."""
    raw, kept, codes = cbor2.loads(blob[:-8])
    body = cbor2.dumps([cbor2.dumps(header) if header else raw, kept if wraps is None else wraps, codes])
    return body + hashlib.sha256(body).digest()[:8]


def header_of(blob: bytes) -> list[object]:
    header = cbor2.loads(cbor2.loads(blob[:-8])[0])
    assert isinstance(header, list)
    return header


# ---- opening -------------------------------------------------------------------------------------------------------


def test_seven_parts_make_twenty_one_wraps_and_open_at_the_first_try() -> None:
    blob = parse(BLOB)
    assert len(blob.wraps) == 21
    assert len(BLOB) < 3 << 10
    assert unlock(BLOB, SECRETS, SERVER) == fingerprint.Unlocked(KEY, (), tries=1)


@pytest.mark.parametrize("pair", [(0, 1), (0, 6), (2, 4), (3, 4), (5, 6)])
def test_two_replaced_open_and_are_named(pair: tuple[int, int]) -> None:
    opened = unlock(BLOB, SECRETS, replaced(*pair))
    assert opened.key == KEY
    assert opened.changed == tuple(SERVER[at].slot for at in pair)
    assert opened.tries <= 21


def test_what_is_replaced_most_often_is_left_out_soonest() -> None:
    assert unlock(BLOB, SECRETS, replaced(5, 6)).tries == 1


@pytest.mark.parametrize("gone", [(0, 1, 2), (1, 3, 6), (4, 5, 6)])
def test_three_replaced_are_refused(gone: tuple[int, ...]) -> None:
    with pytest.raises(BindingError, match="fewer than 5 are in this box"):
        unlock(BLOB, SECRETS, replaced(*gone))


def test_a_refusal_names_what_is_gone_and_what_came_but_no_values() -> None:
    now = [part for at, part in enumerate(SERVER) if at not in (2, 3, 6)]
    now.append(Factor(Slot("disk", "sda", "Other SSD"), "zhz3x8k1", 24))
    with pytest.raises(BindingError) as caught:
        unlock(BLOB, SECRETS, now)
    told = caught.value.message
    assert "gone: the processor's serial number (Xeon), network port eno1 (tg3), disk sda (SSD)" in told
    assert "in their place: disk sda (Other SSD)" in told
    assert not [part.value for part in (*SERVER, *now) if part.value in str(caught.value)]


def test_nothing_in_a_blob_is_a_value() -> None:
    assert not [part.value for part in SERVER if part.value.encode() in BLOB]
    assert not [secret for secret in (KEY, *SECRETS.values()) if secret in BLOB]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=N, max_size=N), st.randoms(use_true_random=False))
def test_k_of_n_and_no_fewer(kept: list[bool], dice) -> None:  # type: ignore[no-untyped-def]
    """In any order, and with parts of other boxes among them."""
    now = [part for part, keep in zip(replaced(*(at for at in range(N) if not kept[at])), kept, strict=True)]
    dice.shuffle(now)
    if sum(kept) >= K:
        opened = unlock(BLOB, SECRETS, now)
        assert opened.key == KEY
        assert set(opened.changed) == {part.slot for part, keep in zip(SERVER, kept, strict=True) if not keep}
    else:
        with pytest.raises(BindingError):
            unlock(BLOB, SECRETS, now)


def test_disks_that_changed_places_are_the_same_disks() -> None:
    disks = [Factor(Slot("disk", f"sd{letter}"), f"serial{number}", 24) for letter, number in (("a", 4711), ("b", 815))]
    swapped = [replace(disks[0], slot=disks[1].slot), replace(disks[1], slot=disks[0].slot)]
    assert unlock(sealed(disks, 2), SECRETS, swapped).changed == ()


def test_new_parts_beside_the_old_ones_do_no_harm() -> None:
    more = [Factor(Slot("disk", f"nvme{number}n1"), f"other{number}", 24) for number in range(8)]
    opened = unlock(BLOB, SECRETS, [*more, *SERVER])
    assert (opened.key, opened.changed, opened.tries) == (KEY, (), 1)


def test_tries_are_bounded() -> None:
    many = [Factor(Slot("disk", f"sd{number}"), f"other{number}", 24) for number in range(24)]
    parts = [Factor(Slot("disk", f"sx{number}"), f"part{number}", 24) for number in range(4)]
    likely = list(fingerprint._likely(parse(sealed(parts, 3)).header, many))
    assert len(likely) == fingerprint.MAX_TRIES


@pytest.mark.parametrize("count", range(4))
def test_few_parts_or_none(count: int) -> None:
    blob = sealed(SERVER[:count], count)
    assert unlock(blob, SECRETS, SERVER[:count]).key == KEY
    if count:
        with pytest.raises(BindingError):
            unlock(blob, SECRETS, replaced(0, parts=SERVER[:count]))


def test_sealed_with_sm4() -> None:
    blob = fingerprint.seal(KEY, SECRETS, SERVER[:3], 2, SALT, CHEAP, suites.SM4)
    assert parse(blob).header.suite == suites.SM4.id
    assert unlock(blob, SECRETS, SERVER[1:4]).key == KEY


def test_a_part_replaced_again_and_again_with_a_new_sealing_each_time() -> None:
    parts = list(SERVER)
    for pair in ((0, 1), (2, 3), (4, 5), (0, 6)):
        blob, parts = sealed(parts), replaced(*pair, parts=parts)
        assert unlock(blob, SECRETS, parts).changed == tuple(parts[at].slot for at in pair)


# ---- the secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["host", "uefi"])
def test_a_secret_that_is_gone_or_another_is_named(name: str) -> None:
    with pytest.raises(BindingError, match=f"{'host' if name == 'host' else 'UEFI'}.*is gone"):
        unlock(BLOB, {**SECRETS, name: None}, SERVER)
    with pytest.raises(BindingError, match=f"{'host' if name == 'host' else 'UEFI'}.*is another one"):
        unlock(BLOB, {**SECRETS, name: b"x" * 32}, SERVER)


def test_sealed_without_uefi_it_opens_where_there_is_one_now() -> None:
    blob = sealed(secrets={"host": SECRETS["host"]})
    assert unlock(blob, SECRETS, SERVER).key == KEY


def test_nothing_is_sealed_without_a_host_secret() -> None:
    for secrets in ({}, {"uefi": b"u" * 32}, {**SECRETS, "moon": b"m" * 32}):
        with pytest.raises(ValueError, match="cannot be sealed with"):
            sealed(secrets=secrets)


# ---- altered, swapped, hostile -------------------------------------------------------------------------------------


def test_a_header_with_a_lower_k_opens_nothing() -> None:
    header = header_of(BLOB)
    header[3] = 3
    with pytest.raises(SealError):  # 35 wraps would be there
        unlock(resealed(BLOB, header), SECRETS, SERVER)
    wraps = cbor2.loads(BLOB[:-8])[1]
    each = len(wraps) // 21
    with pytest.raises(BindingError):
        unlock(resealed(BLOB, header, wraps + wraps[: 14 * each]), SECRETS, SERVER)


@pytest.mark.parametrize(("at", "value"), [(1, 2), (2, SALT[::-1]), (4, [MIN_MEMORY_KIB, 2])])
def test_nothing_of_the_header_can_be_changed(at: int, value: object) -> None:
    header = header_of(BLOB)
    header[at] = value
    with pytest.raises(BindingError):
        unlock(resealed(BLOB, header), SECRETS, SERVER)


def test_labels_cannot_be_changed() -> None:
    """They are shown to people: a part that is there must not be called gone."""
    header = header_of(BLOB)
    header[8][6][2] = b"Mine"  # type: ignore[index]
    with pytest.raises(BindingError):
        unlock(resealed(BLOB, header), SECRETS, SERVER)


def test_each_secret_is_in_each_wrap_and_not_only_in_its_check() -> None:
    header = parse(BLOB).header
    swapped = {"host": SECRETS["uefi"], "uefi": SECRETS["host"]}
    others = [SECRETS, swapped, {**SECRETS, "host": b"x" * 32}, {**SECRETS, "uefi": b"x" * 32}]
    assert len({fingerprint._joint(header, secrets, SERVER[:K]) for secrets in others}) == 4


def test_a_header_without_the_uefi_secret_opens_nothing() -> None:
    header = header_of(BLOB)
    header[5], header[6] = 1, header[6][:1]  # type: ignore[index]
    with pytest.raises(BindingError):
        unlock(resealed(BLOB, header), SECRETS, SERVER)


def test_wraps_of_another_box_open_nothing() -> None:
    other = fingerprint.seal(KEY, {**SECRETS, "host": b"o" * 32}, SERVER, K, SALT, CHEAP)
    with pytest.raises(BindingError):
        unlock(resealed(BLOB, wraps=cbor2.loads(other[:-8])[1]), SECRETS, SERVER)


def test_wraps_in_another_order_still_open() -> None:
    wraps = cbor2.loads(BLOB[:-8])[1]
    turned = resealed(BLOB, wraps=wraps[112:] + wraps[:112])
    assert unlock(turned, SECRETS, SERVER).key == KEY


@pytest.mark.parametrize(
    "cost",
    [
        [MAX_MEMORY_KIB + 1, 1],
        [1 << 40, 1],
        [64 << 10, 9],
        [64 << 10, 1 << 40],
        [MAX_MEMORY_KIB, 8],
        [MIN_MEMORY_KIB - 1, 1],
        [0, 0],
        [64 << 10, 0],
    ],
)
def test_a_hostile_cost_is_refused_before_memory_is_taken(cost: list[int]) -> None:
    header = header_of(BLOB)
    header[4] = cost
    with pytest.raises(SealError):
        parse(resealed(BLOB, header))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 2), (0, 1 << 30), (1, 9), (2, b"short"), (3, 8), (7, 8), (7, 200), (8, []), (5, 0), (6, [])],
)
def test_a_hostile_header_is_refused(at: int, value: object) -> None:
    header = header_of(BLOB)
    header[at] = value
    with pytest.raises(SealError):
        parse(resealed(BLOB, header))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SealError):
        parse(raw)


@given(st.integers(0, len(BLOB) - 1))
def test_a_blob_cut_short_is_refused(size: int) -> None:
    with pytest.raises(SealError):
        parse(BLOB[:size])


SMALL = sealed(SERVER[:2], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SMALL) * 8 - 1))
def test_a_flipped_bit_gives_the_key_or_an_error_and_no_other_key(bit: int) -> None:
    rotten = bytearray(SMALL)
    rotten[bit // 8] ^= 1 << bit % 8
    try:
        opened = unlock(bytes(rotten), SECRETS, SERVER[:2])
    except SealError:
        return  # said to be damaged, never to be another box
    assert opened.key == KEY
    assert opened.damaged


def test_one_rotten_wrap_costs_nothing_but_a_warning() -> None:
    rotten = bytearray(BLOB)
    first = BLOB.index(parse(BLOB).wraps[0])
    rotten[first + 40] ^= 1
    opened = unlock(bytes(rotten), SECRETS, SERVER)
    assert (opened.key, opened.damaged, opened.changed) == (KEY, True, ())
    assert opened.tries == 2


def test_labels_of_any_text_fit_a_terminal() -> None:
    part = Factor(Slot("disk", "sda\x1b[2J", "x" * 40), "serial4711", 24)
    assert parse(sealed([part], 1)).header.slots == (Slot("disk", "sda[2J", "x" * 40),)


def test_every_subset_has_one_wrap() -> None:
    header = parse(BLOB).header
    assert header.subsets == list(combinations(range(N), K))


@pytest.mark.parametrize(
    ("memory_kib", "cost_kib"),
    [(0, 64 << 10), (64 << 20, 64 << 10), (503_924, 62_990), (128 << 10, 16 << 10), (9, 8192)],
)
def test_a_small_box_is_asked_for_less(memory_kib: int, cost_kib: int) -> None:
    assert affordable(memory_kib) == Cost(cost_kib, 2)


STARVED = """
import resource
from pathlib import Path
from appliance.errors import BindingError
from appliance.vault import fingerprint
secrets = {"host": b"h" * 32}
pages = int(Path("/proc/self/statm").read_text().split()[0])
blob = fingerprint.seal(bytes(32), secrets, [], 0, bytes(32))
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20),) * 2)
try:
    fingerprint.unlock(blob, secrets, [])
except BindingError as error:
    print(error.message)
"""


def test_a_box_without_memory_says_so(repository: Path) -> None:
    run = subprocess.run([sys.executable, "-c", STARVED], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout == "there are no 64 MiB of memory to open the vault with\n"
