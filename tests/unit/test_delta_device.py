"""What a device needs to apply a patch: little, and nothing of the host's side."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from ota.delta import applying
print(*sorted(name for name in sys.modules if "." not in name or name.startswith("ota.")))
"""
HOST = {"making", "encoding", "analysis", "covers", "packing", "formats", "matching", "adapters", "showing"}
FOREIGN = {"hdiffpatch", "openvino", "torch", "onnx", "flatbuffers", "subprocess", "appliance", "hardware", "msgspec"}


def test_applying_takes_nothing_of_the_host(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=repository, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ota.delta.applying" in loaded
    assert not loaded & {f"ota.delta.{name}" for name in HOST}
    assert not loaded & FOREIGN
