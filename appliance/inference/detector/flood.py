"""Many assets that fall silent together are one alarm: the gateway is gone, not two thousand machines (ISA-18.2).

    fold       so many or more of one walk; whoever falls silent while the alarm stands joins it
    unfold     when few are left they are told one by one

The alarm belongs to what the assets' names have in common, or to the box itself.
"""

from collections.abc import Iterable

TOGETHER = 10  # assets that fall silent in one walk
FEW = 3  # that are left
NAMED = 3  # in the message
NOBODY = "millwright/detect"  # where the names have nothing in common


class Flood:
    """`asset` is what the alarm belongs to, empty: there is none."""

    def __init__(self, asset: str = "", members: Iterable[str] = ()) -> None:
        self.asset, self.members = asset, set(members)

    def take(self, silent: list[str], known: Iterable[str]) -> list[str]:
        """Of assets that have just fallen silent those that are told by themselves."""
        if not self.asset:
            if len(silent) < TOGETHER:
                return silent
            self.asset = common(silent)
            if self.asset in known:
                self.asset = NOBODY
        self.members.update(silent)
        return []

    def release(self, heard: Iterable[str]) -> list[str]:
        """Assets that are back. Those that are left, once they are few: they are told by themselves now."""
        self.members.difference_update(heard)
        if not self.asset or len(self.members) > FEW:
            return []
        left = sorted(self.members)
        self.asset, self.members = "", set()
        return left

    def why(self) -> str:
        names = ", ".join(sorted(self.members)[:NAMED])
        where = f"under {self.asset} " if self.asset != NOBODY else ""
        return f"{len(self.members)} assets {where}fell silent together: {names}, ..."


def common(names: Iterable[str]) -> str:
    """The path that all of them begin with."""
    paths = [name.split("/") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or NOBODY
