"""A secret in memory: it shows itself to nobody who does not ask by name."""

from typing import NoReturn


class Secret:
    """Bytes that appear in no log, error, `repr`, format or pickle. `reveal` is the one way to them, so that every use
    can be found by searching for that word."""

    __slots__ = ("_bytes",)

    def __init__(self, content: bytes) -> None:
        self._bytes = content

    def reveal(self) -> bytes:
        return self._bytes

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are compared with hmac.compare_digest, in constant time")

    __hash__ = None  # type: ignore[assignment]  # a dictionary's key would be compared

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
