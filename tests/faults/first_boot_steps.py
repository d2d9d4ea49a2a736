"""Sets up boxes and ends abruptly at each step: `python first_boot_steps.py FOLDER`.

A step is a call that changes the disk, as the interpreter's own audit events tell of them. Every box is set up in a
process that is forked here, so that what is slow is imported once. Prints how each box ended, a line of JSON each, and
`done` at the end.
"""

import contextlib
import io
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from appliance import assembly, binding
from appliance.__main__ import main as millwright
from appliance.config.load import load
from appliance.vault.recovery import RecoveryKey
from tests.faults import abrupt

SECRETS = {"mqtt/plant": "one", "mqtt/site": "two"}
MOST = 400

assert assembly
assert RecoveryKey


def lay(box: Path) -> None:
    (box / "etc/millwright").mkdir(parents=True)
    (box / "boot").mkdir()
    (box / "console").touch()
    (box / "etc/millwright/millwright.toml").write_text(
        f'[paths]\nstate = "{box}/state"\nrun = "{box}/run"\n[vault]\nbackend = "plain"\n'
    )
    secrets = "".join(f'"{name}" = "{value}"\n' for name, value in SECRETS.items())
    tables = f'[time]\nservers = ["192.0.2.1"]\n[config.broker]\ntls_port = 8883\n[secrets]\n{secrets}'
    (box / "boot/millwright-seed.toml").write_text(f'host_name = "press-2"\n{tables}')


def set_up(box: Path, step: int = 0) -> int:
    """In a process of its own; ended abruptly at its step of that number. Its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    abrupt.cut_at(step)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = millwright(["first-boot", "--root", str(box), "--console", str(box / "console")])
    os._exit(code)


def looked_at(box: Path) -> dict[str, Any]:
    """In a process of its own, too: a vault is opened once."""
    config, document = load(box / "etc/millwright/millwright.toml")
    with binding.unlock(config, document) as vault:
        names = sorted(entry.name for entry in vault.custody.entries())
        kept = {name: vault.custody.get(name).reveal().decode() for name in SECRETS}
    tables = tomllib.loads((box / "etc/millwright/millwright.toml").read_text())
    return {
        "secrets": kept,
        "names": names,
        "host": (box / "etc/hostname").read_text(),
        "port": tables["broker"]["tls_port"],
        "seed": (box / "boot/millwright-seed.toml").exists(),
        "key_opens": opens(box, config, document),
        "rests": sorted(path.name for path in box.rglob(".*.new")),
    }


def opens(box: Path, config: Any, document: Any) -> bool:
    """Whether the recovery key that the console showed last opens the vault."""
    lines = (box / "console").read_text().splitlines()
    start = max(number for number, line in enumerate(lines) if "It is shown once" in line) + 2
    key = RecoveryKey.read("\n".join(lines[start : start + 3]))
    from appliance.vault import chest

    made = binding.Box(config, document)
    chest.recover(made.folder, key, made.backend(), made.counter(), lambda: 1_800_000_000_000_000_000).close()
    return True


def main(folder: Path) -> None:
    for step in range(1, MOST):
        lay(box := folder / str(step))
        cut = set_up(box, step)
        codes = [cut, set_up(box), *([set_up(box)] if step % 8 == 0 else [])]
        print(json.dumps({"step": step, "codes": codes, **looked_at(box)}), flush=True)
        if cut != abrupt.CUT:
            print("done")
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
