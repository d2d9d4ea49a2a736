"""Policies of a TPM computed without one, what an allow-list holds, and what a release says of itself."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.tpm import DamagedError, RefusedError, Release, policies, slots

registers = st.binary(min_size=32, max_size=32)
states = st.lists(st.fixed_dictionaries({7: registers, 11: registers}), min_size=1, max_size=slots.MOST_SLOTS)


def test_known_policies() -> None:
    """As tpm2-tools 5.4 got them from a TPM that has measured nothing."""
    pcr_7 = "8b5682d81b29435d08d79278150611dc7e5923b2fefcce684a09577b40130a8b"
    pcr_7_and_11 = "384378caeddc9690b2ac9589827a756a5c46c8b33178b2fe468c80531b97a53e"
    either = "ebf1e9e5bd0a81cfc4032d61013fd18ad7df2ab56de85af46e9adca65e3cceae"
    assert policies.of_registers({7: bytes(32)}).hex() == pcr_7
    assert policies.of_registers({7: bytes(32), 11: bytes(32)}).hex() == pcr_7_and_11
    assert policies.of_any([bytes(32), b"\1" * 32]).hex() == either


def test_one_branch_is_two_alike() -> None:
    assert policies.of_any([bytes(32)]) == policies.of_any([bytes(32), bytes(32)])


def test_the_order_of_registers_is_theirs() -> None:
    assert policies.of_registers({11: b"b" * 32, 7: b"a" * 32}) == policies.of_registers({7: b"a" * 32, 11: b"b" * 32})
    assert policies.of_registers({7: b"b" * 32, 11: b"a" * 32}) != policies.of_registers({7: b"a" * 32, 11: b"b" * 32})


@given(states)
def test_an_allow_list_comes_back(allowed: list[dict[int, bytes]]) -> None:
    content = slots.encode(allowed)
    assert len(content) == slots.CONTENT_BYTES
    assert slots.decode(content) == allowed


@given(st.binary(max_size=slots.CONTENT_BYTES + 40))
def test_any_bytes_are_no_allow_list(content: bytes) -> None:
    with pytest.raises(DamagedError):
        slots.decode(content)


@given(states, st.integers(0, slots.CONTENT_BYTES - 1), st.integers(1, 255))
def test_an_altered_allow_list_is_refused(allowed: list[dict[int, bytes]], at: int, bits: int) -> None:
    content = bytearray(slots.encode(allowed))
    content[at] ^= bits
    with pytest.raises(DamagedError):
        slots.decode(bytes(content))


@pytest.mark.parametrize(
    "wrong",
    [
        [{7: bytes(32)}] * 5,
        [{}],
        [{24: bytes(32)}],
        [{7: bytes(32)}, {11: bytes(32)}],
        [dict.fromkeys((0, 7, 11), bytes(32))],
    ],
)
def test_what_no_allow_list_holds(wrong: list[dict[int, bytes]]) -> None:
    with pytest.raises(ValueError, match="allow-list"):
        slots.encode(wrong)


# ---- releases ---------------------------------------------------------------------------------------------------


def placed(root: Path, content: str) -> Release:
    folder = root / "run/systemd"
    folder.mkdir(parents=True)
    (folder / "tpm2-pcr-signature.json").write_text(content)
    return Release(root)


def test_a_system_that_is_no_release_has_neither_key_nor_signature(tmp_path: Path) -> None:
    assert Release(tmp_path).key() == b""
    assert Release(tmp_path).signatures() == []


def test_signatures_for_pcr_11_alone_are_taken(tmp_path: Path) -> None:
    good = {"pcrs": [11], "pol": "00" * 32, "sig": "AAAA"}
    content = {"sha1": [good], "sha256": [good, good | {"pcrs": [4]}, good | {"pcrs": [7, 11]}]}
    assert [one.signature for one in placed(tmp_path, json.dumps(content)).signatures()] == [bytes(3)]


@pytest.mark.parametrize(
    "entry",
    [
        {"pcrs": [11]},
        {"pcrs": [11], "pol": "00", "sig": "AAAA"},
        {"pcrs": [11], "pol": "zz" * 32, "sig": "AAAA"},
        {"pcrs": [11], "pol": "00" * 32, "sig": "A"},
        {"pcrs": [11], "pol": "00" * 32, "sig": ""},
        {"pcrs": [11], "pol": "00" * 32, "sig": "AAAA" * 200},
        [],
    ],
)
def test_a_signature_out_of_order_is_refused(tmp_path: Path, entry: object) -> None:
    with pytest.raises(RefusedError, match="not in order"):
        placed(tmp_path, json.dumps({"sha256": [entry]})).signatures()


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="more than"):
        placed(tmp_path, " " * 100_000).signatures()
