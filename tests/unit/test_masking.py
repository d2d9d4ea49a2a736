"""Personal data is found as people write it, machine data is left alone, and tokens turn back with the key only."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.masking import numbers
from appliance.masking.finding import find
from appliance.masking.masker import Masker, Policy
from appliance.masking.tokens import KEY_BYTES, Tokens
from tools.benchmarks.people import machines, odd, people, rows

KEY = bytes(range(KEY_BYTES))
RESIDENT = "11010519491231002X"  # the example of GB 11643-1999
CARD = "4111 1111 1111 1111"


def kinds(text: str) -> list[tuple[str, str]]:
    return [(found.kind, text[found.start : found.end]) for found in find(text)]


class TestRecall:
    def test_generated_people_are_found_whole(self) -> None:
        missed = [
            sample.text
            for sample in people(seed=11, count=20_000)
            if not any(f.start <= sample.start and sample.end <= f.end for f in find(sample.text))
        ]
        assert missed == []

    def test_rare_spellings_are_found_whole(self) -> None:
        """But for a bracket at either end."""
        missed = [
            sample.text
            for sample in odd(seed=13, count=20_000)
            if not any(f.start <= sample.start + 1 and sample.end - 1 <= f.end for f in find(sample.text))
        ]
        assert missed == []

    def test_rows_of_numbers_are_left_alone(self) -> None:
        """A resident id's check and date leave one row of some thousands to chance."""
        changed = [sample.text for sample in rows(seed=14, count=20_000) if find(sample.text)]
        assert len(changed) <= 10, changed

    def test_machine_data_is_left_alone(self) -> None:
        masker = Masker(Policy())
        changed = [sample.text for sample in machines(seed=12, count=20_000) if masker.text(sample.text) != sample.text]
        assert changed == []

    @pytest.mark.parametrize(
        ("text", "kind", "written"),
        [
            (f"id {RESIDENT}.", "resident-id", RESIDENT),
            (RESIDENT.lower(), "resident-id", RESIDENT.lower()),
            ("身份证110105 19491231 002X", "resident-id", "110105 19491231 002X"),
            ("身份证号: 110105491231002", "resident-id", "110105491231002"),
            (f"No.{CARD}.", "bank-card", CARD),
            ("phone13812345678", "phone", "13812345678"),
            ("００８６１３８１２３４５６７８", "phone", "００８６１３８１２３４５６７８"),  # full width
            ("+49 (0) 89 1234567", "phone", "+49 (0) 89 1234567"),
            ("0755-26001234-801", "phone", "0755-26001234-801"),
            ("Ruf 0755-26001234.", "phone", "0755-26001234"),  # the end of a sentence
            ("电话：01088888888", "phone", "01088888888"),
            ("mail a.b@例子.中国 now", "e-mail", "a.b@例子.中国"),
            ("Reisepass Nr.: C01X00T47", "passport", "C01X00T47"),
            (
                "L898902C36UTO7408122F1204159ZE184226B<<<<<10",
                "passport",
                "L898902C36UTO7408122F1204159ZE184226B<<<<<10",
            ),
        ],
    )
    def test_ways_of_writing(self, text: str, kind: str, written: str) -> None:
        assert (kind, written) in kinds(text)

    def test_two_numbers_that_run_into_each_other(self) -> None:
        assert kinds(f"13812345678 {RESIDENT} {CARD} 12 kg") == [
            ("phone", "13812345678"),
            ("resident-id", RESIDENT),
            ("bank-card", CARD),
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "110105194912310021",  # check digit
            "110105194902310022",  # 31 February
            "4111 1111 1111 1112",  # Luhn
            "0.13812345678",
            "sn 113812345678",
            "+12.3456789",  # signed, not called
            "1.3.6.1.2.1.2.2.1.6.1",  # SNMP
            "134.12345678",
            "62.5 78.9 44.1 76.4 19.0 35.9",  # adds up
            "C01X00T47",  # no word says that it is a passport
            "a@b",
        ],
    )
    def test_what_only_looks_like_it(self, text: str) -> None:
        assert find(text) == []


@given(st.integers(0, 2**32), st.integers(0, 17), st.sampled_from("0123456789X"))
def test_a_changed_character_of_a_resident_id_is_noticed(seed: int, place: int, character: str) -> None:
    """MOD 11-2 notices each single wrong character."""
    sample = next(one for one in people(seed, 1000) if one.kind == "resident-id" and one.end - one.start == 18)
    number = "".join(chr(ord(c) - 0xFEE0) if ord(c) > 0xFEE0 else c for c in sample.text[sample.start : sample.end])
    number = number.upper()
    changed = number[:place] + character + number[place + 1 :]
    if not number.isascii() or not changed[:17].isdigit() or changed == number:
        return
    assert numbers.is_resident_id(number)
    assert not numbers.is_resident_id(changed)


@given(st.text())
def test_any_text_is_survived_and_masking_twice_changes_nothing(text: str) -> None:
    masker = Masker(Policy())
    once = masker.text(text)
    assert masker.text(once) == once


class TestMasker:
    def test_for_good_by_default(self) -> None:
        masker = Masker(Policy())
        assert masker.text(f"call 13812345678 ({RESIDENT})") == "call <phone> (<resident-id>)"
        assert masker.count == {"phone": 1, "resident-id": 1}

    def test_tokens_turn_back_with_the_key_and_only_with_it(self) -> None:
        masker = Masker(Policy(kinds={"phone": "token"}), Tokens(KEY))
        masked = masker.text("call 13812345678, again 13812345678")
        first, second = masked.removeprefix("call ").split(", again ")
        assert first == second
        assert "13812345678" not in masked
        assert Tokens(KEY).restore(masked) == "call 13812345678, again 13812345678"
        assert Tokens(bytes(KEY_BYTES)).restore(masked) == masked

    def test_a_token_of_one_kind_is_none_of_another(self) -> None:
        token = Tokens(KEY).of("phone", "13812345678")
        assert Tokens(KEY).restore(token.replace("<phone:", "<e-mail:")) == token.replace("<phone:", "<e-mail:")

    def test_tokens_are_left_as_they_are(self) -> None:
        masker = Masker(Policy(kinds={"phone": "token"}), Tokens(KEY))
        tokens = [Tokens(KEY).of("phone", f"138{number:08}") for number in random.Random(1).sample(range(10**8), 500)]
        assert [masker.text(token) for token in tokens] == tokens

    def test_fields_by_their_path_whatever_they_say(self) -> None:
        policy = Policy(fields={"shift.*.name": "mask", "note": "token", "pump": "keep"})
        event = {"shift": {"night": {"name": "Li Wei"}}, "note": "tired", "pump": "13812345678", "at": 13812345678}
        masked = Masker(policy, Tokens(KEY)).value(event)
        assert isinstance(masked, dict)
        assert masked["shift"] == {"night": {"name": "<text>"}}
        assert Tokens(KEY).restore(masked["note"]) == "tired"
        assert masked["pump"] == "13812345678"
        assert masked["at"] == 13812345678

    def test_keys_and_lists_too(self) -> None:
        assert Masker(Policy()).value({"a@example.com": ["x", "+86 13812345678"]}) == {"<e-mail>": ["x", "<phone>"]}

    def test_what_is_masked_is_still_json(self) -> None:
        text = json.dumps({"operator": "13812345678", "at": 1})
        assert json.loads(Masker(Policy()).text(text)) == {"operator": "<phone>", "at": 1}

    def test_tokens_without_a_key_are_refused(self) -> None:
        with pytest.raises(ValueError, match="key of the vault"):
            Masker(Policy(fields={"note": "token"}))
        with pytest.raises(ValueError, match="64 bytes"):
            Tokens(b"short")
