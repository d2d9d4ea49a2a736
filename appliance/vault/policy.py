"""Who may do what with which secret: pure. The owner may do everything; the rest is refused unless a rule allows it.

The rules stand in a TOML file of their own (`vault.policy` names it):

    [[rule]]
    unit = "mosquitto.service"               # a systemd unit, by LoadCredential; `*` stands for any characters
    read = ["mqtt/*"]                        # `*`: any characters within a level; a last level `**`: all below
    credentials = {password = "mqtt/plant"}  # what it gets under an id of its own choice; this allows it, too

    [[rule]]
    user = "grafana"                         # or uid = 472, group = "plant", gid = 1001
    read = ["grafana/**"]
    write = ["grafana/token"]

    [[rule]]
    group = "adm"
    manage = true                            # everything: all names, rotation, backup, status

systemd's ids of credentials know no '/': without an entry in `credentials`, `mqtt+plant` asks for `mqtt/plant`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from appliance.config.document import Document
from appliance.errors import VaultError
from appliance.vault.port import NAME

MAX_RULES = 1000
LEVEL_MARK = "+"  # stands for '/' in a credential's id; no name has it

Action = Literal["read", "write", "manage"]
Pattern = Annotated[str, Meta(min_length=1, max_length=300)]

_NAME = re.compile(NAME)
_LEVEL = r"(?=[a-z0-9_.*-]{1,64}(?:/|$))[^*/]*(?:\*[^*/]*){0,2}"  # two stars: more would be slow to match
_PATTERN = re.compile(rf"{_LEVEL}(?:/{_LEVEL}){{0,3}}")
_UNIT = re.compile(r"(?=[A-Za-z0-9:_.\\@*-]{1,255}$)[^*]*(?:\*[^*]*){0,2}")
_SUBJECTS = ("unit", "user", "uid", "group", "gid")


@dataclass(frozen=True)
class Peer:
    """Who asks, as the kernel says; `unit` and `credential` where root asks in the name of a systemd unit."""

    uid: int
    gids: frozenset[int] = frozenset()
    pid: int = 0
    user: str = ""
    groups: frozenset[str] = frozenset()
    unit: str = ""
    credential: str = ""

    @property
    def is_forged(self) -> bool:
        """It claims to be systemd, and is not root."""
        return bool(self.unit) and self.uid != 0

    def __str__(self) -> str:
        if self.unit:
            return f"unit {self.unit}"
        return f"uid {self.uid} ({self.user})" if self.user else f"uid {self.uid}"


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One of unit, user, uid, group, gid says whom it is about."""

    unit: str | None = None
    user: str | None = None
    uid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    group: str | None = None
    gid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    read: Sequence[Pattern] = ()
    write: Sequence[Pattern] = ()
    manage: bool = False
    credentials: Mapping[str, str] = {}

    def about(self, peer: Peer) -> bool:
        if peer.unit:
            return self.unit is not None and _like(self.unit, peer.unit)
        return (
            (self.user is not None and self.user == peer.user)
            or (self.uid is not None and self.uid == peer.uid)
            or (self.group is not None and self.group in peer.groups)
            or (self.gid is not None and self.gid in peer.gids)
        )

    def allows(self, action: Action, name: str) -> bool:
        if self.manage:
            return True
        granted: Mapping[Action, Sequence[str]] = {
            "read": (*self.read, *self.credentials.values()),
            "write": self.write,
        }
        return any(_like(pattern, name) for pattern in granted.get(action, ()))

    def __str__(self) -> str:
        return next(f"{key} {getattr(self, key)}" for key in _SUBJECTS if getattr(self, key) is not None)


@dataclass(frozen=True)
class Policy:
    """`owner`: the uid that the vault runs as. It and root may do everything."""

    owner: int
    rules: Sequence[Rule] = field(default=())

    def allows(self, peer: Peer, action: Action, name: str = "") -> bool:
        """`name` of a secret; empty with `manage` for what concerns the vault as a whole."""
        if not peer.unit and peer.uid in (0, self.owner):
            return True
        return any(rule.about(peer) and rule.allows(action, name) for rule in self.rules)

    def asked_for(self, peer: Peer) -> str:
        """The secret's name that a unit's credential id stands for."""
        for rule in self.rules:
            if peer.credential in rule.credentials and rule.about(peer):
                return rule.credentials[peer.credential]
        return peer.credential.replace(LEVEL_MARK, "/")

    def who(self, action: Action, name: str) -> list[str]:
        """Everybody who may, for a person."""
        owners = ["root"] if self.owner == 0 else [f"uid {self.owner}, the vault's own", "root"]
        return owners + [str(rule) for rule in self.rules if rule.allows(action, name)]

    @property
    def by_names(self) -> bool:
        """Whether users' and groups' names matter, which take time to find."""
        return any(rule.user is not None or rule.group is not None for rule in self.rules)


def parse(document: Document, owner: int) -> Policy:
    """ConfigError names file, line, key and remedy."""
    tables = document.tables.get("rule", [])
    for key in document.tables:
        if key != "rule":
            raise document.error((key,), "there is no such key", "Write [[rule]] for each rule.")
    if not isinstance(tables, list):
        raise document.error(("rule",), "several are possible", "Write [[rule]], with two brackets.")
    if len(tables) > MAX_RULES:
        raise document.error(("rule",), f"{len(tables)} rules", f"At most {MAX_RULES}; patterns save some.")
    return Policy(owner, tuple(_rule(document, index, table) for index, table in enumerate(tables)))


def check_name(name: str) -> str:
    """The name itself, or VaultError that says what one looks like."""
    if not _NAME.fullmatch(name):
        shown = name if name.isprintable() and len(name) <= 80 else "that"
        raise VaultError(f"'{shown}' is no name of a secret", "Write namespace/name of a-z 0-9 _ . -, like mqtt/plant.")
    return name


def _rule(document: Document, index: int, table: Any) -> Rule:
    here = ("rule", str(index))
    rule = document.into(Rule, table, here)
    named = [key for key in _SUBJECTS if getattr(rule, key) is not None]
    if len(named) != 1:
        problem = f"it is about {' and '.join(named) or 'nobody'}"
        raise document.error(here, problem, f"Write exactly one of {', '.join(_SUBJECTS)}.")
    if rule.unit is not None and not _UNIT.fullmatch(rule.unit):
        raise document.error((*here, "unit"), f"'{rule.unit}' is no unit", "Write its full name: mosquitto.service.")
    if rule.manage and rule.unit is not None:
        raise document.error((*here, "manage"), "a unit gets credentials and manages nothing", "Name a user or group.")
    if rule.credentials and rule.unit is None:
        raise document.error((*here, "credentials"), "only units ask by credential ids", "Use read.")
    _check_names(document, here, rule)
    if not (rule.read or rule.write or rule.manage or rule.credentials):
        raise document.error(here, "it allows nothing", "Add read, write or manage, or remove the rule.")
    return rule


def _check_names(document: Document, here: tuple[str, ...], rule: Rule) -> None:
    for key in ("read", "write"):
        for pattern in getattr(rule, key):
            if not _PATTERN.fullmatch(pattern) or "**" in f"/{pattern}".removesuffix("/**"):
                remedy = "Write a name like mqtt/plant, with * for any characters of a level or /** for all below."
                raise document.error((*here, key), f"'{pattern}' is no pattern of names", remedy)
    for identity, name in rule.credentials.items():
        if not _NAME.fullmatch(name):
            remedy = "Write the whole name of a secret, like mqtt/plant."
            raise document.error((*here, "credentials"), f"'{identity}' stands for '{name}', which is no name", remedy)


def _like(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """`*` within a level; a last level `**` for one level or more."""
    levels = pattern.split("/")
    rest = r"[^/]+(?:/[^/]+)*" if levels[-1] == "**" else None
    parts = ["[^/]*".join(map(re.escape, level.split("*"))) for level in (levels[:-1] if rest else levels)]
    return re.compile("/".join([*parts, *([rest] if rest else [])]))
