"""Masks what leaves the box, by a declared policy."""

from collections import Counter
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from appliance.masking.finding import find
from appliance.masking.patterns import KINDS, Kind
from appliance.masking.tokens import SHAPE, Tokens

Action = Literal["keep", "mask", "token"]


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of personal data in what leaves the box."""

    kinds: Annotated[
        dict[Kind, Action],
        Meta(
            description="By kind (`resident-id`, `passport`, `phone`, `bank-card`, `e-mail`): `mask` it for good, "
            "replace it by a `token` that the vault can turn back, or `keep` it. Kinds that are left out are masked."
        ),
    ] = field(default_factory=dict)
    fields: Annotated[
        dict[str, Action],
        Meta(
            description="By a field's path (`operator`, `*.comment`): what becomes of all its text, whatever it says."
        ),
    ] = field(default_factory=dict)

    def without_tokens(self) -> "Policy":
        """The same, masking for good in their place."""
        kinds: dict[Kind, Action] = {
            kind: "mask" if action == "token" else action for kind, action in self.kinds.items()
        }
        fields: dict[str, Action] = {
            path: "mask" if action == "token" else action for path, action in self.fields.items()
        }
        return Policy(kinds, fields)


class Masker:
    """`count` says how many of each kind were masked, for the operator's eyes; never what they were."""

    def __init__(self, policy: Policy, tokens: Tokens | None = None) -> None:
        """ValueError where the policy asks for tokens and there is no key to make them."""
        if tokens is None and "token" in (*policy.kinds.values(), *policy.fields.values()):
            raise ValueError("the policy asks for tokens, which need a key of the vault")
        self._actions = {kind: policy.kinds.get(kind, "mask") for kind in KINDS}
        self._fields = policy.fields
        self._tokens = tokens
        self.count: Counter[str] = Counter()

    def text(self, text: str) -> str:
        """What was masked before stays as it is."""
        parts, at = [], 0
        for done in SHAPE.finditer(text):
            parts += [self._fresh(text[at : done.start()]), done[0]]
            at = done.end()
        return "".join([*parts, self._fresh(text[at:])])

    def value(self, value: object, path: str = "") -> object:
        """Of a message: texts in maps and lists, and the maps' keys. Numbers are measurements and stay."""
        if isinstance(value, str):
            return self._field(value, path)
        if isinstance(value, dict):
            return {
                self.text(key) if isinstance(key, str) else key: self.value(part, f"{path}.{key}" if path else str(key))
                for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(part, path) for part in value]
        return value

    def _field(self, text: str, path: str) -> str:
        for pattern, action in self._fields.items():
            if fnmatchcase(path, pattern):
                return self._replaced("text", text, action)
        return self.text(text)

    def _fresh(self, text: str) -> str:
        parts, at = [], 0
        for found in find(text):
            replaced = self._replaced(found.kind, text[found.start : found.end], self._actions[found.kind])
            parts += [text[at : found.start], replaced]
            at = found.end
        return "".join([*parts, text[at:]])

    def _replaced(self, kind: str, text: str, action: Action) -> str:
        if action == "keep":
            return text
        self.count[kind] += 1
        if action == "token" and self._tokens is not None:
            return self._tokens.of(kind, text)
        return f"<{kind}>"
