"""Changes a library of models and ends abruptly at one of its steps: `python library_changes.py ROOT CHANGE STEP`.

A step is a call that changes the disk, as the interpreter's own audit events tell of them. Prints `done` where there
are fewer steps.
"""

import os
import sys
from pathlib import Path

from appliance.inference.library import Library

CHANGING = {"os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def main(root: Path, change: str, step: int) -> None:
    library, left = Library(root / "models"), step

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if event in CHANGING or writes:
            left -= 1
            if not left:
                os._exit(9)

    sys.addaudithook(count)
    if change == "add":
        library.add(root / "new")
    elif change == "use":
        library.use(library.find("toy@2.0.0"))
    else:
        library.remove(library.find("toy@1.0.0"))
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
