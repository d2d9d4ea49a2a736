"""A box of its own for a test: folders with short names, a configuration, and a mosquitto on its socket."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE_S = 30.0
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


@dataclass
class Box:
    """`run` the command line as its user would."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "box.toml"

    @property
    def url(self) -> str:
        return f"unix:{self.folder}/run/mqtt.sock"

    @property
    def environment(self) -> dict[str, str]:
        own = {"XDG_RUNTIME_DIR": str(self.folder), "XDG_STATE_HOME": str(self.folder), "COVERAGE_RCFILE": ""}
        own["PYTHONUNBUFFERED"] = "1"  # as in many containers: what is written must be whole all the same
        return {**os.environ, **own, "PYTHONWARNINGS": "error", "TERM": "xterm-256color"}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "appliance", "--config", str(self.config), *words]

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *self.command(*words), stdout=pipe, stderr=pipe, env=self.environment
        )

    async def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        process = await self.start(*words)
        async with asyncio.timeout(PATIENCE_S):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


@pytest.fixture
def quiet_box() -> Iterator[Box]:
    """Nothing runs."""
    # Not pytest's folder: a socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="mw-"))
    (folder / "run").mkdir()
    (folder / "box.toml").write_text(f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n')
    yield Box(folder)
    shutil.rmtree(folder)


@pytest.fixture
def box(quiet_box: Box) -> Iterator[Box]:
    """A broker runs."""
    program = shutil.which("mosquitto", path=PATH)
    if program is None:
        pytest.skip("mosquitto is not installed")
    settings = quiet_box.folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    settings.write_text(
        f"listener 0 {quiet_box.folder}/run/mqtt.sock\nallow_anonymous true\nlog_dest stderr\nlog_type all\n{user}"
    )
    process = subprocess.Popen([program, "-c", str(settings)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b" running" in line:
            break
    process.stderr.close()
    yield quiet_box
    process.terminate()
    process.wait(PATIENCE_S)
