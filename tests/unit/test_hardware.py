"""Facts about hardware, read from file trees made for the purpose: the machines this one is not."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hardware import accelerators, clock, storage
from hardware.accelerators import Accelerator

RELEASE = "6.12.0-test"


def lay(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


# ---- accelerators --------------------------------------------------------------------------------------------------


class Runtime:
    """Stands for OpenVINO: answers from a table, and remembers what it was asked."""

    def __init__(self, answers: Mapping[tuple[str, str], object] | None = None) -> None:
        self.answers = {("CPU", "FULL_DEVICE_NAME"): "Intel(R) N100 ", **(answers or {})}
        self.asked: list[str] = []

    def __call__(self, device: str, name: str) -> object:
        self.asked.append(device)
        answer = self.answers.get((device, name))
        if answer is None:
            raise RuntimeError(f"Exception from core.cpp:117:\nCannot load library: {name} of {device}\n\n")
        return answer


def box(root: Path) -> Path:
    """A machine with a CPU and nothing else."""
    return lay(
        root,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) N100\nmicrocode\t: 0x1a\n\nprocessor\t: 1",
            "proc/sys/kernel/osrelease": RELEASE,
        },
    )


def node(root: Path, sys_class: str, name: str, folder: str, driver: str, vendor: str = "0x8086") -> Path:
    """A device that a kernel driver has taken."""
    device = root / "sys/class" / sys_class / name / "device"
    lay(root, {f"dev/{folder}/{name}": "", f"sys/class/{sys_class}/{name}/device/vendor": vendor})
    (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
    (device / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)
    return root


def gpu(root: Path, name: str = "renderD128", vendor: str = "0x8086") -> Path:
    return node(box(root), "drm", name, "dri", "i915", vendor)


def npu(root: Path) -> Path:
    return node(box(root), "accel", "accel0", "accel", "intel_vpu")


def found(root: Path, runtime: Runtime, allowed: bool = True) -> dict[str, Accelerator]:
    facts = accelerators.find(runtime, root, lambda path: allowed)
    assert len({fact.device for fact in facts}) == len(facts)
    return {fact.device: fact for fact in facts}


GPU_ANSWERS = {("GPU", "AVAILABLE_DEVICES"): ["0"], ("GPU", "FULL_DEVICE_NAME"): "Intel(R) Iris(R) Xe Graphics (iGPU)"}
NPU_ANSWERS = {
    ("NPU", "AVAILABLE_DEVICES"): ["3720"],
    ("NPU", "FULL_DEVICE_NAME"): "Intel(R) AI Boost",
    ("NPU", "NPU_DRIVER_VERSION"): 1_782_310_000,
}


def test_a_machine_with_a_cpu_only(tmp_path: Path) -> None:
    runtime = Runtime()
    facts = found(box(tmp_path), runtime)
    assert facts["CPU"] == Accelerator(
        "CPU", "Intel(R) N100", f"kernel {RELEASE}", "microcode 0x1a", node="", present=True, reason="", remedy=""
    )
    for device in ("GPU", "NPU"):
        assert not facts[device].present
        assert not facts[device].usable
        assert "this machine has none" in facts[device].reason
    assert set(runtime.asked) == {"CPU"}  # no plugin is loaded for what is not there


def test_a_gpu_that_works(tmp_path: Path) -> None:
    assert found(gpu(tmp_path), Runtime(GPU_ANSWERS))["GPU"] == Accelerator(
        "GPU",
        "Intel(R) Iris(R) Xe Graphics (iGPU)",
        driver=f"i915 (kernel {RELEASE})",
        node="/dev/dri/renderD128",
        present=True,
    )


def test_two_gpus_have_a_number_each(tmp_path: Path) -> None:
    gpu(tmp_path)
    gpu(tmp_path, "renderD129")
    answers = {
        ("GPU", "AVAILABLE_DEVICES"): ["0", "1"],
        ("GPU.0", "FULL_DEVICE_NAME"): "small",
        ("GPU.1", "FULL_DEVICE_NAME"): "large",
    }
    facts = found(tmp_path, Runtime(answers))
    assert [(facts[name].name, facts[name].node) for name in ("GPU.0", "GPU.1")] == [
        ("small", "/dev/dri/renderD128"),
        ("large", "/dev/dri/renderD129"),
    ]


def test_an_npu_that_works_tells_its_versions(tmp_path: Path) -> None:
    lay(tmp_path, {"sys/kernel/debug/accel/0000:00:0b.0/fw_version": "20260801*MTL_CLIENT"})
    fact = found(npu(tmp_path), Runtime(NPU_ANSWERS))["NPU"]
    assert fact.usable
    assert fact.name == "Intel(R) AI Boost"
    assert fact.driver == f"intel_vpu (kernel {RELEASE}), user space 1782310000"
    assert fact.firmware == "20260801*MTL_CLIENT"
    assert fact.node == "/dev/accel/accel0"


def test_a_drivers_own_version_is_shown(tmp_path: Path) -> None:
    lay(tmp_path, {"sys/module/intel_vpu/version": "1.28.0"})
    assert found(npu(tmp_path), Runtime(NPU_ANSWERS))["NPU"].driver.startswith("intel_vpu (1.28.0)")


def test_a_node_that_we_may_not_open(tmp_path: Path) -> None:
    runtime = Runtime(GPU_ANSWERS)
    fact = found(gpu(tmp_path), runtime, allowed=False)["GPU"]
    assert fact.present
    assert fact.reason.startswith("no permission on /dev/dri/renderD128 (group ")
    assert fact.remedy.startswith("usermod -aG ")
    assert "GPU" not in runtime.asked


def test_a_device_without_a_kernel_driver(tmp_path: Path) -> None:
    pci = "sys/bus/pci/devices/0000:00:0b.0"
    lay(box(tmp_path), {f"{pci}/vendor": "0x8086", f"{pci}/class": "0x120000"})
    fact = found(tmp_path, Runtime())["NPU"]
    assert fact.present
    assert "PCI 0000:00:0b.0" in fact.reason
    assert "intel_vpu" in fact.remedy


def test_a_device_whose_user_space_driver_is_missing(tmp_path: Path) -> None:
    fact = found(gpu(tmp_path), Runtime())["GPU"]
    assert fact.present
    assert fact.reason == "Cannot load library: AVAILABLE_DEVICES of GPU"  # the one line that says something
    assert "intel-opencl-icd" in fact.remedy


def test_a_plugin_that_finds_nothing(tmp_path: Path) -> None:
    fact = found(npu(tmp_path), Runtime({("NPU", "AVAILABLE_DEVICES"): []}))["NPU"]
    assert fact.present
    assert fact.reason == "OpenVINO's plugin finds no device"
    assert fact.remedy


def test_another_makers_gpu_is_not_ours(tmp_path: Path) -> None:
    runtime = Runtime(GPU_ANSWERS)
    assert not found(gpu(tmp_path, vendor="0x10de"), runtime)["GPU"].present
    assert "GPU" not in runtime.asked


def test_a_runtime_that_is_not_there(tmp_path: Path) -> None:
    runtime = Runtime()
    runtime.answers.clear()
    fact = found(box(tmp_path), runtime)["CPU"]
    assert fact.name == "Intel(R) N100"
    assert not fact.usable
    assert fact.remedy


def test_an_arm_board_has_a_name_too(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/cpuinfo": "processor : 0\n\nHardware : BCM2835\nModel : Raspberry Pi 5 Model B"})
    runtime = Runtime()
    runtime.answers.clear()
    assert found(tmp_path, runtime)["CPU"].name == "Raspberry Pi 5 Model B"


def test_this_machine_is_told_whole() -> None:
    facts = {fact.device: fact for fact in accelerators.find()}
    assert facts["CPU"].usable
    assert facts["CPU"].name
    for fact in facts.values():
        assert fact.usable or fact.reason


# ---- clock ---------------------------------------------------------------------------------------------------------

NOON = 1_800_000_000.0


def test_a_clock_that_timesyncd_keeps(tmp_path: Path) -> None:
    lay(tmp_path, {clock.SYNCHRONISED: ""})
    facts = clock.find(NOON, root=tmp_path, kernel=lambda: False)
    assert facts == clock.Clock(NOON, clock.RELEASED_S, synchronised=True, source="timesyncd")
    assert facts.plausible


@pytest.mark.parametrize("kept", [True, False])
def test_a_clock_that_another_daemon_keeps(tmp_path: Path, kept: bool) -> None:
    facts = clock.find(NOON, root=tmp_path, kernel=lambda: kept)
    assert facts.plausible
    assert facts.synchronised is kept
    assert facts.source == ("kernel" if kept else "")
    assert bool(facts.remedy) is not kept


def test_a_clock_that_starts_in_1970(tmp_path: Path) -> None:
    facts = clock.find(12.0, root=tmp_path, kernel=lambda: False)
    assert not facts.plausible
    assert "1970-01-01 00:00 UTC" in facts.reason
    assert facts.remedy


def test_a_clock_decades_ahead(tmp_path: Path) -> None:
    facts = clock.find(NOON + 40 * 365 * 86_400, root=tmp_path, kernel=lambda: True)
    assert not facts.plausible
    assert facts.remedy


@pytest.mark.parametrize("name", clock.FLOOR_FILES)
def test_systemds_own_floor_counts(tmp_path: Path, name: str) -> None:
    lay(tmp_path, {name: ""})
    os.utime(tmp_path / name, (NOON, NOON))
    assert clock.find(NOON + 1, root=tmp_path, kernel=lambda: True).plausible
    facts = clock.find(NOON - 1, root=tmp_path, kernel=lambda: True)
    assert not facts.plausible
    assert facts.floor_s == NOON


def test_what_the_caller_has_seen_counts(tmp_path: Path) -> None:
    assert not clock.find(NOON, known_s=NOON + 60, root=tmp_path, kernel=lambda: True).plausible


def test_the_kernel_answers() -> None:
    assert clock.kernel_synchronised() in (True, False)


# ---- storage -------------------------------------------------------------------------------------------------------


def disk(root: Path, number: str, mounts: str, chain: str = "mmcblk0/mmcblk0p2") -> Path:
    """A partition of an eMMC under /sys, and a mount table."""
    device = root / "sys/devices/block" / chain
    device.mkdir(parents=True)
    (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/dev/block" / number).symlink_to(device)
    if "/" in chain:
        (device / "partition").write_text("2\n")
    return lay(root, {"proc/self/mountinfo": mounts})


ROOT_MOUNT = "21 1 179:2 / / rw,relatime shared:1 - ext4 /dev/mmcblk0p2 rw"


def test_an_emmc_tells_its_wear(tmp_path: Path) -> None:
    disk(tmp_path, "179:2", ROOT_MOUNT)
    lay(
        tmp_path,
        {"sys/block/mmcblk0/device/life_time": "0x02 0x04", "sys/block/mmcblk0/device/pre_eol_info": "0x01"},
    )
    facts = storage.find(tmp_path, root=tmp_path)
    assert (facts.filesystem, facts.disk, facts.wear_percent, facts.reserve) == ("ext4", "mmcblk0", 40, "normal")
    assert not facts.read_only
    assert 0 < facts.free_bytes <= facts.total_bytes


@pytest.mark.parametrize(
    ("life_time", "percent"),
    [("0x00 0x00", None), ("0x01 0x00", 10), ("0x0a 0x0b", 110), ("nonsense", None), ("", None)],
)
def test_wear_is_told_only_where_it_is_known(tmp_path: Path, life_time: str, percent: int | None) -> None:
    disk(tmp_path, "179:2", ROOT_MOUNT)
    lay(tmp_path, {"sys/block/mmcblk0/device/life_time": life_time})
    assert storage.find(tmp_path, root=tmp_path).wear_percent == percent


def test_the_innermost_mount_counts(tmp_path: Path) -> None:
    inner = tmp_path / "with space"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts = (
        f"{ROOT_MOUNT}\n30 21 0:40 / {escaped} ro - squashfs none ro\nnonsense\n31 21 0:41 / /nowhere rw - tmpfs t rw"
    )
    disk(tmp_path, "179:2", mounts)
    facts = storage.find(inner / "not" / "yet", root=tmp_path)
    assert (facts.path, facts.filesystem, facts.read_only, facts.disk) == (inner, "squashfs", True, "")


def test_an_encrypted_disk_is_followed(tmp_path: Path) -> None:
    disk(tmp_path, "253:0", ROOT_MOUNT.replace("179:2", "253:0"), chain="dm-0")
    below = tmp_path / "sys/devices/block/nvme0n1/nvme0n1p3"
    lay(below, {"partition": "3"})
    (tmp_path / "sys/devices/block/dm-0/slaves").mkdir()
    (tmp_path / "sys/devices/block/dm-0/slaves/nvme0n1p3").symlink_to(below)
    assert storage.find(tmp_path, root=tmp_path).disk == "nvme0n1"


def test_without_a_mount_table_space_is_told_all_the_same(tmp_path: Path) -> None:
    facts = storage.find(tmp_path, root=tmp_path)
    assert (facts.filesystem, facts.disk, facts.wear_percent) == ("", "", None)
    assert facts.total_bytes > 0


def test_this_machines_own_disk(tmp_path: Path) -> None:
    facts = storage.find(tmp_path)
    assert facts.filesystem
    assert not facts.read_only
