"""What OpenVINO may compute on: the CPU, Intel's GPUs and NPUs, and what keeps one of them from being used.

First /sys and /dev say what hardware is there and whether we may open it; only then is OpenVINO asked, because asking
for a GPU or an NPU loads its whole plugin. `root` is another file tree in tests.
"""

import grp
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

INTEL = "0x8086"

Ask = Callable[[str, str], object]  # (device, property) -> value; RuntimeError with the runtime's own words
MayOpen = Callable[[Path], bool]


@dataclass(frozen=True)
class Accelerator:
    """One device. It is usable where `reason` is empty; else `remedy` says what a person can do."""

    device: str  # OpenVINO's name: CPU, GPU, GPU.1, NPU
    name: str = ""  # the maker's
    driver: str = ""
    firmware: str = ""
    node: str = ""  # /dev/...
    present: bool = False  # the hardware is there, usable or not
    reason: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class _Kind:
    device: str
    what: str
    nodes: str  # pattern under /dev
    sys_class: str
    pci_classes: tuple[str, ...]  # first digits of the PCI class
    modules: str  # kernel drivers
    packages: str  # user-space drivers
    version_property: str


_GPU = _Kind(
    device="GPU",
    what="Intel GPU",
    nodes="dri/renderD*",
    sys_class="drm",
    pci_classes=("0x0300", "0x0302", "0x0380"),
    modules="i915 or xe",
    packages="Intel's OpenCL driver (Debian: intel-opencl-icd)",
    version_property="",
)
_NPU = _Kind(
    device="NPU",
    what="Intel NPU",
    nodes="accel/accel*",
    sys_class="accel",
    pci_classes=("0x1200",),
    modules="intel_vpu",
    packages="Intel's NPU driver (level-zero and its compiler)",
    version_property="NPU_DRIVER_VERSION",
)


def find(ask: Ask | None = None, root: Path = Path("/"), may_open: MayOpen | None = None) -> list[Accelerator]:
    """The CPU, then every GPU and NPU; of a kind that is not there, one entry that says why.

    `ask` answers for OpenVINO; without it OpenVINO is imported here, whole. Nothing is raised.
    """
    ask = ask or _openvino()
    may_open = may_open or _may_open
    return [
        _cpu(ask, root),
        *(found for kind in (_GPU, _NPU) for found in _of_kind(kind, ask, root, may_open)),
    ]


def _cpu(ask: Ask, root: Path) -> Accelerator:
    facts = _cpuinfo(root)
    name = facts.get("model name") or facts.get("Model") or facts.get("Hardware", "")
    firmware = f"microcode {facts['microcode']}" if "microcode" in facts else ""
    try:
        name = str(ask("CPU", "FULL_DEVICE_NAME")) or name
    except RuntimeError as error:
        return Accelerator(
            "CPU", name, firmware=firmware, present=True, reason=_said(error), remedy="Install OpenVINO again."
        )
    return Accelerator("CPU", name.strip(), _kernel(root), firmware, present=True)


def _of_kind(kind: _Kind, ask: Ask, root: Path, may_open: MayOpen) -> Iterator[Accelerator]:
    nodes = _nodes(kind, root)
    if not nodes:
        yield _without_node(kind, root)
        return
    shown = [f"/{node.relative_to(root)}" for node in nodes]
    driver, firmware = _driver(kind, nodes[0], root), _firmware(kind, root)
    known = Accelerator(kind.device, kind.what, driver, firmware, ", ".join(shown), present=True)
    if not any(may_open(node) for node in nodes):
        group = _group(nodes[0])
        yield _unusable(
            known, f"no permission on {known.node} (group {group})", f"usermod -aG {group} USER, then log in again."
        )
        return
    try:
        yield from _enumerated(kind, ask, known, shown)
    except RuntimeError as error:
        yield _unusable(known, _said(error), f"Install {kind.packages}.")


def _enumerated(kind: _Kind, ask: Ask, known: Accelerator, shown: list[str]) -> list[Accelerator]:
    """One entry for each device that OpenVINO's plugin finds. RuntimeError where the plugin cannot be loaded."""
    ids = _listed(ask(kind.device, "AVAILABLE_DEVICES"))
    if not ids:
        return [_unusable(known, "OpenVINO's plugin finds no device", f"Install {kind.packages}.")]
    driver = known.driver
    if kind.version_property:
        driver = f"{driver}, user space {ask(kind.device, kind.version_property)}".lstrip(", ")
    found = []
    for rank, number in enumerate(ids):
        device = kind.device if len(ids) == 1 else f"{kind.device}.{number}"
        node = shown[rank] if len(shown) == len(ids) else known.node
        name = str(ask(device, "FULL_DEVICE_NAME"))
        found.append(Accelerator(device, name, driver, known.firmware, node, present=True))
    return found


def _without_node(kind: _Kind, root: Path) -> Accelerator:
    where = f"/dev/{kind.nodes}"
    address = _on_pci(kind, root)
    if address:
        return Accelerator(
            kind.device,
            kind.what,
            present=True,
            reason=f"the {kind.what} at PCI {address} has no {where}: no kernel driver has taken it",
            remedy=f"Load the kernel module {kind.modules} (and see `dmesg` for its firmware).",
        )
    return Accelerator(kind.device, reason=f"no {where} of an {kind.what}: this machine has none")


def _nodes(kind: _Kind, root: Path) -> list[Path]:
    return [
        node
        for node in sorted((root / "dev").glob(kind.nodes))
        if _text(root / "sys/class" / kind.sys_class / node.name / "device/vendor") == INTEL
    ]


def _on_pci(kind: _Kind, root: Path) -> str:
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _text(device / "vendor") == INTEL and _text(device / "class").startswith(kind.pci_classes):
            return device.name
    return ""


def _driver(kind: _Kind, node: Path, root: Path) -> str:
    link = root / "sys/class" / kind.sys_class / node.name / "device/driver"
    name = link.resolve().name if link.exists() else ""
    version = _text(root / "sys/module" / name / "version") or _kernel(root) if name else ""
    return f"{name} ({version})" if version else name


def _firmware(kind: _Kind, root: Path) -> str:
    """The kernel tells it in debugfs, which only root may read."""
    try:
        files = sorted((root / "sys/kernel/debug" / kind.sys_class).glob("*/fw_version"))
    except OSError:
        return ""
    return _text(files[0]) if files else ""


def _kernel(root: Path) -> str:
    release = _text(root / "proc/sys/kernel/osrelease")
    return f"kernel {release}" if release else ""


def _cpuinfo(root: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def _group(node: Path) -> str:
    try:
        return grp.getgrgid(node.stat().st_gid).gr_name
    except (KeyError, OSError):
        return "render"


def _unusable(known: Accelerator, reason: str, remedy: str) -> Accelerator:
    return Accelerator(
        known.device, known.name, known.driver, known.firmware, known.node, known.present, reason, remedy
    )


def _listed(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def _said(error: RuntimeError) -> str:
    """OpenVINO's errors are a stack of source files; the last line says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "OpenVINO gives no reason"


def _openvino() -> Ask:
    try:
        openvino = importlib.import_module("openvino")  # here: 30 MB that only an answer from OpenVINO is worth
    except ImportError as error:
        return _unavailable(f"OpenVINO cannot be loaded: {error}")
    ask: Ask = openvino.Core().get_property
    return ask


def _unavailable(why: str) -> Ask:
    def ask(device: str, name: str) -> object:
        raise RuntimeError(why)

    return ask
