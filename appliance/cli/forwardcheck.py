"""What the doctor says of lines to destinations."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from appliance.services.words import counted, printable, span

if TYPE_CHECKING:
    from appliance.cli.findings import Finding, Scene

REMEDIES = {
    "thinned": "A line was down for long: raise its budget_mb, or see 'millwright forward status'.",
    "budget": "A line was down for long: raise its budget_mb, or see 'millwright forward status'.",
    "rejected": "The destination refuses what it is sent: see the log of the forward service.",
    "rotten": "The disk gives back other bytes than were written: replace it.",
}


def found(scene: "Scene") -> "Iterator[Finding]":
    from appliance.cli.findings import Finding

    state = scene.picture.services.get("forward") if scene.picture else None
    told = state.detail.get("destinations") if state is not None and state.online else None
    for name, one in told.items() if isinstance(told, dict) else ():
        title, line = f"forward {printable(name)}", str(one.get("line"))
        waiting = counted(sum(one.get("queued", {}).values()), "event")
        since = span(max(scene.now - int(one.get("since", 0)), 0) / 1e9)
        if line == "open":
            yield Finding(title, "ok", f"its line is open; {waiting} waiting")
        elif line == "paused":
            yield Finding(title, "warn", f"paused for {since}; {waiting} waiting", "millwright forward resume")
        else:
            problem, _, remedy = str(one.get("error", "")).partition("\n  -> ")
            detail = f"{line} for {since}; {waiting} waiting; {problem or 'it is being opened'}"
            yield Finding(title, "warn", printable(detail)[:400], printable(remedy) or "millwright forward test")
