"""`millwright doctor accelerators`: what a person is told of each device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import DeviceError
from appliance.inference import models
from appliance.inference.backends import replay
from appliance.inference.checkup import Examiner
from appliance.inference.isolated.workers import LostError

BUNDLE = models.load(models.shipped())


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "doctor", "accelerators", *words]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_every_device_of_this_machine_is_tried(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (0, True), done.stderr
    devices = {one["device"]: one for one in told["devices"]}
    assert {"CPU", "GPU", "NPU"} <= {name.partition(".")[0] for name in devices}
    cpu = devices["CPU"]
    assert (cpu["status"], cpu["ran_on"], cpu["off_percent"]) == ("ok", "CPU", 0.0)
    assert min(cpu["compile_ms"], cpu["compile_again_ms"], cpu["rows_per_s"], *cpu["latency_ms"].values()) > 0
    assert all(one["reason"] for one in devices.values() if one["status"] != "ok")


def test_a_device_that_is_wanted_and_not_there_is_a_fault(tmp_path: Path) -> None:
    config = tmp_path / "box.toml"
    config.write_text('[detect]\ndevice = ["NPU", "CPU"]\n')
    done = doctor(tmp_path, "--config", str(config))
    if "absent NPU" in doctor(tmp_path).stdout:
        assert done.returncode == 1
        assert "fail   NPU: not here\n" in done.stdout
    assert "ok     CPU" in done.stdout


def examined(device: str, fault: str) -> Examiner:
    settings = replay.Settings(answer="identity", devices=("CPU", device), faulty=(device,), fault=fault)  # type: ignore[arg-type]
    return Examiner(BUNDLE, replay.create(settings))


def test_a_device_that_lies_or_crashes_is_told_as_what_it_is() -> None:
    liar, wreck = examined("NPU", "wrong"), examined("GPU", "crash")
    with pytest.raises(DeviceError, match="answers its probe wrongly"):
        liar.examine("NPU")
    with pytest.raises(LostError, match="SIGSEGV"):
        wreck.examine("GPU")
    assert wreck.examine("CPU").off == 0.0
    liar.close()
    wreck.close()
