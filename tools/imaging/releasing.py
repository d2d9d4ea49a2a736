"""What is handed out: a compressed image with its block map, a disk for virtual machines, the parts of an update,
a bill of materials, checksums and their signature."""

from pathlib import Path

from tools.imaging import builder, places
from tools.imaging.building import IMAGE, Order
from tools.imaging.places import Places

SUMS = "SHA256SUMS"
SCRIPT = """set -eu
cd "$1"; name=$2 key=$3 architecture=$6
rm -f "$name" initrd initrd.cpio.zst "$name.esp.raw"
mkdir /tmp/root
fsck.erofs --extract=/tmp/root --no-preserve "$(ls "$name.root-$architecture".*.raw)" >/dev/null
PYTHONDONTWRITEBYTECODE=1 python3 -m tools.imaging.sbom make /tmp/root --name millwright --version "$4" \
    --manifest "$name.manifest" --epoch "$5" >"$name.cdx.json"
bmaptool create -o "$name.img.bmap" "$name.raw"
zstd --quiet --force -T0 -10 "$name.raw" -o "$name.img.zst"
qemu-img convert -q -c -o compression_type=zstd -f raw -O qcow2 "$name.raw" "$name.qcow2"
sha256sum "$name".* >SHA256SUMS
export GNUPGHOME=/tmp/gnupg
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --import "$key"
gpg --batch --quiet --yes --detach-sign -o SHA256SUMS.gpg SHA256SUMS
gpgconf --kill all
"""


def finish(where: Places, folder: Path, what: Order) -> None:
    """BuilderError."""
    name = f"{IMAGE}_{what.version}"
    command = ["sh", "-c", SCRIPT, "finish", str(folder), name, str(where.keys / "update.key")]
    command += [what.version, str(what.epoch), where.architecture]
    environment = {"PYTHONPATH": str(places.PROJECT)}
    builder.run(where, command, where.cache / "release.log", environment=environment)


def raw_image(folder: Path) -> Path:
    """The disk as it is flashed. BuilderError where none was built."""
    parts = (".root-", ".esp.")
    whole = [path for path in sorted(folder.glob(f"{IMAGE}_*.raw")) if not any(part in path.name for part in parts)]
    if not whole:
        raise builder.BuilderError(f"{folder} holds no image: tools/image build makes one")
    return whole[0]


def parts(folder: Path) -> list[Path]:
    """Of an update: the root file system, its hashes, the kernel image last."""
    return [*sorted(folder.glob(f"{IMAGE}_*.root-*.raw")), *sorted(folder.glob(f"{IMAGE}_*.efi"))]
