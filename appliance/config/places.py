"""Where the program keeps things, unless the configuration says otherwise."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field

INSTALLED = Path("/etc/millwright/millwright.toml")


def default_state() -> Path:
    """/var/lib/millwright on an appliance, the XDG state folder on a laptop."""
    if INSTALLED.exists():
        return Path("/var/lib/millwright")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "millwright"


def default_run() -> Path:
    """/run/millwright on an appliance, the XDG runtime folder (or a private temporary one) on a laptop."""
    if INSTALLED.exists():
        return Path("/run/millwright")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "millwright" if base else Path(tempfile.gettempdir()) / f"millwright-{os.getuid()}"


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    """Where things are kept."""

    state: Annotated[Path, Meta(description="What must survive: history, alarms, what the detector learned.")] = field(
        default_factory=default_state
    )
    run: Annotated[Path, Meta(description="Sockets and process files; may vanish at a reboot.")] = field(
        default_factory=default_run
    )
