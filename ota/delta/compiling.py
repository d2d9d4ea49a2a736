"""Compiles the delta kernel: python -m ota.delta.compiling [FOLDER]

Into FOLDER, or beside kernel.c; then tells which kernel is used from now on. Any C compiler will do (CC names another).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ota.delta.errors import DeltaError
from ota.delta.kernel import SOURCE, available, load, name

FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off", "-fno-fast-math")


def build(folder: Path = SOURCE.parent) -> Path:
    """The compiled kernel in `folder`; DeltaError where that fails or gives other bits."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise DeltaError("there is no C compiler", "install one, or do without: numpy does the work")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        fresh = Path(work) / target.name
        command = [compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DeltaError(f"{compiler} fails: {done.stderr.strip()[-500:]}", " ".join(command))
        if load(fresh) is None:
            raise DeltaError("the compiled kernel gives other bits than numpy", "do without it: numpy does the work")
        fresh.replace(target)
    return target


def main(words: list[str]) -> int:
    if len(words) > 1 or (words and words[0].startswith("-")):
        print(__doc__)
        return 2
    try:
        print(f"compiled {build(*map(Path, words))}")
    except DeltaError as error:
        print(error, file=sys.stderr)
        return 1
    kernel = available()
    print(f"used {kernel.path if kernel else 'none: numpy does the work'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
