"""The programs that judge a system, in a tree of their own: nothing of them is installed into what they look at.

A machine gets them as a disk that it can only read. Lynis and OpenSCAP are those of the image's Debian; the rules for
OpenSCAP and kernel-hardening-checker are in the next one only, and are taken from there: they are data and Python.
"""

from dataclasses import replace
from pathlib import Path

from tools.imaging import builder, sources
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

PACKAGES = ("lynis", "openscap-scanner")
LATER = ("ssg-debian", "kernel-hardening-checker")
LATER_RELEASE = "forky"
MOUNTED = "/run/checkers"  # in the machine that is looked at
VERSIONS = "versions"  # of all these packages, at the top of the tree
_FETCH = r"""set -eu
tree=$1 line=$2; shift 2
mkdir -p /tmp/later/lists/partial
cd /tmp/later
printf '%s\n' "$line" >later.list
cat >apt.conf <<'CONF'
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
Dir::Etc::SourceList "/tmp/later/later.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "/tmp/later/lists";
CONF
export APT_CONFIG=/tmp/later/apt.conf
apt-get update -qq
apt-get download -qq "$@"
for package in *.deb; do
    dpkg-deb -x "$package" "$tree"
    dpkg-deb --show --showformat='${Package} ${Version}\n' "$package" >>"$tree/versions"
done
mkfs.erofs --quiet "$tree.erofs" "$tree"
"""
_CHECK = """set -eu
tree=$1 kept=$2
export PYTHONPATH="$tree/usr/lib/python3/dist-packages" PYTHONDONTWRITEBYTECODE=1
exec python3 "$tree/usr/bin/kernel-hardening-checker" -m json \\
    -c "$kept/kernel-config.txt" -l "$kept/command-line.txt" -s "$kept/sysctl.txt" -v "$kept/kernel-version.txt"
"""


def make(where: Places) -> Path:
    """The tree; its disk lies beside it, with `.erofs`. Made once, then kept. BuilderError."""
    tree = where.cache / "checkers"
    if (disk := tree.with_suffix(".erofs")).exists():
        return tree
    print("image: fetching Lynis, OpenSCAP and kernel-hardening-checker", flush=True)
    builder.debian(where, tree, "extract", PACKAGES)
    later = f"deb [signed-by={sources.KEYRING}] {builder.machine_mirror().main} {LATER_RELEASE} main"
    script = ["sh", "-c", _FETCH, "fetch", str(tree), later, *LATER]
    try:
        builder.run(where, script, where.cache / "later.log", network=True)
    except builder.BuilderError:
        disk.unlink(missing_ok=True)
        raise
    return tree


def attached(machine: Machine, tree: Path) -> Machine:
    """With the disk of the checkers."""
    drive = f"if=none,id=checkers,format=raw,readonly=on,file={tree.with_suffix('.erofs')}"
    device = "virtio-blk-pci,drive=checkers,serial=checkers"
    return replace(machine, extra=(*machine.extra, "-drive", drive, "-device", device))


def mount(running: Running) -> None:
    disk = "/dev/disk/by-id/virtio-checkers"
    running.check(f"mkdir -p {MOUNTED}; mount -t erofs -o ro,nodev {disk} {MOUNTED}")


def judge_kernel(where: Places, tree: Path, kept: Path) -> None:
    """By the texts that were fetched from the machine; what was found is kept beside them. BuilderError."""
    script = ["sh", "-c", _CHECK, "check", str(tree), str(kept)]
    builder.run(where, script, kept / "kernel-hardening.json")
