"""Whether the boot that was counted is the one that runs: asked before systemd blesses it. Pure.

Firmware that refuses a new system starts the boot loader again, which boots the old one. The variable of the counted
boot still names the new one; blessed now, it would be taken for good at every boot from then on, and never start.
"""

from typing import NamedTuple

from hardware.slots import naming


class Ruling(NamedTuple):
    bless: bool
    reason: str


def judge(counted: str | None, selected: str | None, running: str = "") -> Ruling:
    """`counted` and `selected` are LoaderBootCountPath and LoaderEntrySelected, None where they are not set; `running`
    is IMAGE_VERSION of the system that runs. What cannot be told is not blessed: the other system comes back then."""
    if not counted:
        return Ruling(False, "no boot was counted: there is nothing to bless")
    if not selected:
        return Ruling(False, "the boot loader does not say what it has booted")
    one, other = naming.parse(counted), naming.parse(selected)
    if one is None or other is None:
        return Ruling(False, f"'{counted}' and '{selected}' are no names of boot entries")
    if one.plain.lower() != other.plain.lower():  # the names come from a file system that does not tell them apart
        return Ruling(False, f"'{one.plain}' was counted, and '{other.plain}' was booted")
    if running and one.version and one.version != running:
        return Ruling(False, f"version {one.version} was counted, and version {running} runs")
    return Ruling(True, f"'{one.plain}' was counted and booted")
