"""Applies a patch and ends abruptly at one of its steps: `python delta_apply.py OLD PATCH NEW STEP`; 0: at none.

A step is a call that changes the disk or makes what was written last. Prints `done` and the number of steps.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ota.delta import applying

CHANGING = (
    "open",
    "pwrite",
    "write",
    "copy_file_range",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "mkdir",
)
SYNC_BYTES = 1 << 16  # so that a small file has many records


def main(old: Path, patch: Path, new: Path, step: int) -> None:
    steps = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return counted

    for name in CHANGING:
        setattr(os, name, counting(getattr(os, name)))
    applying.SYNC_BYTES = SYNC_BYTES
    applying.apply(old, patch, new)
    print("done", steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
