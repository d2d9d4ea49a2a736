"""Who may do what: nobody but the owner, unless a rule says so."""

import re
from fnmatch import translate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.document import Document
from appliance.errors import ConfigError, VaultError
from appliance.vault import policy, rules
from appliance.vault.policy import Peer, Policy
from appliance.vault.server import Allowance

OWNER, ANNA, STRANGER = 990, 1000, 4711
RULES = """
[[rule]]
unit = "mosquitto.service"
read = ["mqtt/*"]
credentials = {password = "tls/broker/key"}

[[rule]]
user = "anna"
read = ["plant/**", "site"]
write = ["plant/token-*"]

[[rule]]
gid = 44
read = ["video/stream"]

[[rule]]
group = "adm"
manage = true
"""


def parsed(text: str = RULES) -> Policy:
    return policy.parse(Document("rules.toml", text), OWNER)


def unit(name: str, credential: str = "x") -> Peer:
    return Peer(0, unit=name, credential=credential)


anna = Peer(ANNA, frozenset({1000, 27}), user="anna", groups=frozenset({"anna"}))


class TestDecisions:
    def test_without_rules_the_owner_and_root_do_everything_and_nobody_else_anything(self) -> None:
        nothing = Policy(OWNER)
        for action in ("read", "write", "manage"):
            assert nothing.allows(Peer(0), action, "mqtt/plant")
            assert nothing.allows(Peer(OWNER), action, "mqtt/plant")
            assert not nothing.allows(Peer(STRANGER), action, "mqtt/plant")
            assert not nothing.allows(unit("mosquitto.service"), action, "mqtt/plant")

    @pytest.mark.parametrize(
        ("peer", "action", "name", "allowed"),
        [
            (unit("mosquitto.service"), "read", "mqtt/plant", True),
            (unit("mosquitto.service"), "read", "mqtt/a/b", False),
            (unit("mosquitto.service"), "read", "tls/broker/key", True),
            (unit("mosquitto.service"), "read", "plant/x", False),
            (unit("mosquitto.service"), "write", "mqtt/plant", False),
            (unit("xmosquitto.service"), "read", "mqtt/plant", False),
            (anna, "read", "plant/x", True),
            (anna, "read", "plant/x/y/z", True),
            (anna, "read", "plant", False),
            (anna, "read", "plants/x", False),
            (anna, "write", "plant/token-1", True),
            (anna, "write", "plant/x", False),
            (anna, "manage", "", False),
            (anna, "read", "mqtt/plant", False),
            (Peer(STRANGER, frozenset({1, 44})), "read", "video/stream", True),
            (Peer(STRANGER, frozenset({1})), "read", "video/stream", False),
            (Peer(STRANGER, groups=frozenset({"adm"})), "manage", "", True),
            (Peer(STRANGER, groups=frozenset({"adm"})), "read", "mqtt/plant", True),
            (Peer(0, unit="any.service", user="anna"), "read", "plant/x", False),
        ],
    )
    def test_a_rule_allows_what_it_says(self, peer: Peer, action: policy.Action, name: str, allowed: bool) -> None:
        assert parsed().allows(peer, action, name) == allowed

    def test_a_units_credential_is_named_by_its_rule_or_by_itself(self) -> None:
        found = parsed()
        assert found.asked_for(unit("mosquitto.service", "password")) == "tls/broker/key"
        assert found.asked_for(unit("other.service", "password")) == "password"
        assert found.asked_for(unit("other.service", "mqtt+plant")) == "mqtt/plant"

    def test_who_may_is_told(self) -> None:
        assert parsed().who("read", "plant/token-1") == ["uid 990, the vault's own", "root", "user anna", "group adm"]
        assert parsed().who("write", "mqtt/plant") == ["uid 990, the vault's own", "root", "group adm"]

    @given(st.from_regex(r"[ab*]{1,4}(/[ab*]{1,4}){0,2}", fullmatch=True), st.from_regex(r"[ab]{1,3}(/[ab]{1,3}){0,2}"))
    def test_a_pattern_matches_level_by_level(self, pattern: str, name: str) -> None:
        try:
            found = parsed(f'[[rule]]\nuid = {ANNA}\nread = ["{pattern}"]')
        except ConfigError:
            return
        name = name.strip()
        if pattern == "**" or pattern.endswith("/**"):
            start = pattern[:-2].split("/")[:-1]
            expected = len(name.split("/")) > len(start) and _like(start, name.split("/")[: len(start)])
        else:
            expected = _like(pattern.split("/"), name.split("/"))
        assert found.allows(Peer(ANNA), "read", name) == expected


def _like(patterns: list[str], levels: list[str]) -> bool:
    pairs = zip(patterns, levels, strict=False)
    return len(patterns) == len(levels) and all(re.match(translate(one), level) for one, level in pairs)


def refusal(text: str) -> str:
    try:
        parsed(text)
    except ConfigError as error:
        return error.message
    return "rules.toml: in order"


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "problem", "remedy"),
        [
            ("[[rule]]\nuid = 1\nraed = []", "rules.toml:3: rule.0.raed: there is no such key", "'read'"),
            ("[[rule]]\nread = ['a/b']", "rules.toml:1: rule.0: it is about nobody", "exactly one of unit, user"),
            ("[[rule]]\nuid = 1\nuser = 'a'\nread=['a/b']", "it is about user and uid", "exactly one"),
            ("[[rule]]\nuid = 1", "it allows nothing", "Add read"),
            ("[[rule]]\nuid = 1\nread = ['A/b']", "rules.toml:3: rule.0.read: 'A/b' is no pattern", "mqtt/plant"),
            ("[[rule]]\nuid = 1\nread = ['a**/b']", "'a**/b' is no pattern", "/**"),
            ("[[rule]]\nuid = 1\nread = ['*a*b*c/x']", "is no pattern", "/**"),
            ("[[rule]]\nuid = -1\nread = ['a/b']", "rules.toml:2: rule.0.uid", "reference"),
            ("[[rule]]\nunit = 'a b'\nread = ['a/b']", "rules.toml:2: rule.0.unit: 'a b' is no unit", "full name"),
            ("[[rule]]\nunit = 'a.service'\nmanage = true", "manages nothing", "user or group"),
            ("[[rule]]\nuid = 1\ncredentials = {a = 'b/c'}", "only units", "read"),
            ("[[rule]]\nunit = 'a.service'\ncredentials = {a = 'b'}", "which is no name", "whole name"),
            ("[rule]\nuid = 1", "rules.toml:1: rule: several are possible", "[[rule]]"),
            ("[rules]", "rules.toml:1: rules: there is no such key", "[[rule]]"),
        ],
    )
    def test_a_mistake_names_its_line_and_its_remedy(self, text: str, problem: str, remedy: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parsed(text)
        assert problem in caught.value.message
        assert remedy in caught.value.remedy

    @given(st.text(max_size=100))
    def test_any_text_is_rules_or_a_named_error(self, text: str) -> None:
        assert refusal(text).startswith("rules.toml")

    def test_a_name_is_checked(self) -> None:
        assert policy.check_name("mqtt/plant") == "mqtt/plant"
        for wrong in ("mqtt", "mqtt/\x1b[2J", "a" * 500):
            with pytest.raises(VaultError) as caught:
                policy.check_name(wrong)
            assert "\x1b" not in str(caught.value)
            assert len(str(caught.value)) < 200


class TestAllowance:
    def test_a_burst_is_free_then_each_waits_its_turn(self) -> None:
        allowance = Allowance(per_s=10, burst=3, now=0)
        assert [allowance.wait_s(0) for _ in range(3)] == [0, 0, 0]
        assert [round(allowance.wait_s(0), 6) for _ in range(3)] == [0.1, 0.2, 0.3]
        assert allowance.wait_s(100) == 0

    @given(st.lists(st.floats(0, 1), max_size=200))
    def test_over_time_no_more_pass_than_allowed(self, gaps: list[float]) -> None:
        """Who waits as told is let through at the rate, whenever it comes."""
        allowance, now = Allowance(per_s=5, burst=2, now=0), 0.0
        for passed, gap in enumerate(gaps, 1):
            now += gap
            now += allowance.wait_s(now)
            assert passed <= 2 + 5 * now + 1e-6


class TestRules:
    def test_a_changed_file_is_read_again_and_a_broken_one_leaves_what_was(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.toml"
        path.write_text(RULES)
        path.chmod(0o644)
        found = rules.Rules(path, path.stat().st_uid)
        assert len(found.current().rules) == 4
        path.write_text("[[rule]]\nuid = 1\nread = ['a/b']\n")
        assert len(found.current().rules) == 1
        path.write_text("[[rule]]\nuid = 1\nraed = ['a/b']\n\n")
        assert len(found.current().rules) == 1
        assert "raed" in found.trouble
        path.write_text(RULES)
        assert len(found.current().rules) == 4
        assert not found.trouble

    def test_one_that_others_may_change_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.toml"
        path.write_text(RULES)
        path.chmod(0o664)
        with pytest.raises(ConfigError, match="changed by others"):
            rules.read(path, path.stat().st_uid)

    def test_one_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml"):
            rules.Rules(tmp_path / "none.toml", OWNER)
