"""What the boot loader says in the firmware's variables."""

from pathlib import Path

LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd-boot's own vendor id
FOLDER = "sys/firmware/efi/efivars"
MAX_BYTES = 4096
_ATTRIBUTES = 4  # bytes in front of the value


def text(name: str, root: Path = Path("/")) -> str | None:
    """A variable of the boot loader; None where it is not set, or holds no text."""
    try:
        with (root / FOLDER / f"{name}-{LOADER}").open("rb") as file:
            raw = file.read(MAX_BYTES)
    except OSError:
        return None
    try:
        return raw[_ATTRIBUTES:].decode("utf-16-le").split("\0", 1)[0] or None
    except UnicodeDecodeError:
        return None


def image_version(root: Path = Path("/")) -> str:
    """IMAGE_VERSION of the system that runs; empty where it has none."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / name).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        found = [line.partition("=")[2].strip().strip("\"'") for line in lines if line.startswith("IMAGE_VERSION=")]
        return found[-1] if found else ""
    return ""
