"""Work that ends abruptly at one of its steps, over and over, without a start of the interpreter for each.

    with Abrupt(repository, install_steps.__file__) as abrupt:
        ended = abrupt(step, root, "good")       # `play(root, "good")` of that file; False: it was cut off at the step

One process has imported everything, and a fork of it does each work. A step is a call that changes the disk, as the
interpreter's own audit events tell of them (`cut_at`).
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHANGING = {"os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
CUT = 9


class Abrupt:
    def __init__(self, repository: Path, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, script],
            cwd=repository,
            env={"PYTHONPATH": str(repository)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Abrupt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def __call__(self, step: int, *words: object) -> bool:
        """Whether it came to its end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([step, *map(str, words)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended at step {step}, see what was written above"
        code = int(answer)
        assert code in (0, CUT), f"it failed at step {step}, see what was written above"
        return code == 0


def cut_at(step: int) -> None:
    """This process ends with CUT at its change of that number; 0: at none."""
    left = step

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if event in CHANGING or writes:
            left -= 1
            if not left:
                os._exit(CUT)

    sys.addaudithook(count)


def _forked(play: Callable[..., Any], step: int, words: list[str]) -> int:
    """What the fork ended with: 0, CUT, or 1 where it failed."""
    pid = os.fork()
    if not pid:
        try:
            cut_at(step)
            play(*words)
        except BaseException:  # noqa: BLE001  # whatever it is: the fork ends here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(script: str) -> None:
    play = runpy.run_path(script)["play"]
    for line in sys.stdin:
        step, *words = json.loads(line)
        print(_forked(play, step, words), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
