"""Topic filters, MQTT 3.1.1 section 4.7: `+` is one level, `#` is all that follow and the parent itself."""

from collections.abc import Iterable, Sequence

from appliance.errors import BusError


def matches(pattern: str, topic: str) -> bool:
    levels, parts = pattern.split("/"), topic.split("/")
    if topic[:1] == "$" and levels[0] in ("+", "#"):
        return False
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(parts) or level not in ("+", parts[index]):
            return False
    return len(levels) == len(parts)


def overlap(one: str, other: str) -> bool:
    """Is there a topic that both match?"""
    ours, theirs = one.split("/"), other.split("/")
    if (one[:1] == "$" and theirs[0] in ("+", "#")) or (other[:1] == "$" and ours[0] in ("+", "#")):
        return False
    for mine, yours in zip(ours, theirs, strict=False):
        if "#" in (mine, yours):
            return True
        if mine != yours and "+" not in (mine, yours):
            return False
    longer = ours if len(ours) > len(theirs) else theirs
    return len(ours) == len(theirs) or longer[min(len(ours), len(theirs)) :] == ["#"]


def check(filters: Sequence[str], standing: Iterable[str] = ()) -> None:
    """BusError for a filter that is malformed, or overlaps another one, or one of those that stand already.

    Thousands of topics without wildcards, as discovery finds them, cost a look-up each.
    """
    if not filters:
        raise BusError("a subscription without a filter", "name at least one, such as mw/v1/reading/#")
    known = set(standing)
    wild = [pattern for pattern in known if is_wild(pattern)]
    for pattern in filters:
        _check_form(pattern)
        for other in known if is_wild(pattern) else (*wild, *(known & {pattern})):
            refuse_overlap(pattern, other)
        known.add(pattern)
        if is_wild(pattern):
            wild.append(pattern)


def is_wild(pattern: str) -> bool:
    """It stands for more than one topic."""
    return "+" in pattern or "#" in pattern


def refuse_overlap(one: str, other: str) -> None:
    # A broker may then send a message once for each filter, and 3.1.1 does not tell which one it is meant for.
    if overlap(one, other):
        raise BusError(
            f"the filters '{one}' and '{other}' overlap within one session",
            "merge the two subscriptions, or open a second session for one of them",
        )


def _check_form(pattern: str) -> None:
    levels = pattern.split("/")
    good = all(level in ("+", "#") or not ("+" in level or "#" in level) for level in levels)
    if not pattern or "\0" in pattern or "#" in levels[:-1] or not good:
        raise BusError(f"'{pattern[:80]}' is no topic filter", "+ stands for a whole level, # for all that follow")
