"""What a machine is asked by its probe, each answer kept as a text in a folder of the system."""

from collections.abc import Mapping
from pathlib import Path

from tools.imaging.machine import Running
from tools.imaging.report_checkers import MOUNTED
from tools.imaging.report_figures import OPENSCAP

# ANSSI's recommendations for what strangers reach. Those of CIS for servers take three times as long.
PROFILES = ("anssi_bp28_intermediary",)
LONG = 3600.0
FEW_MINUTES = 900.0
IDLE_S = 180
_FILES = f"find / \\( -path /proc -o -path /sys -o -path /dev -o -path {MOUNTED} \\) -prune -o -type f"
_EXPOSURES = r"""cd /usr/lib/systemd/system
for unit in millwright-*.service; do
    systemd-analyze security --no-pager "$unit" | sed -n 's/.*exposure level for \(.*\): \([0-9.]*\) .*/\1 \2/p'
done
"""
QUESTIONS = {
    "memory": f"sleep {IDLE_S}; cat /proc/meminfo",
    "time": "systemd-analyze time",
    "running": "systemctl list-units --type=service --state=running --plain --no-legend | cut -d' ' -f1",
    "security": "systemd-analyze security --no-pager --json=short",
    "exposures": _EXPOSURES,  # of units that do not run: the one above leaves them out
    "ports": "ss -Hltun",
    "setuid": f"{_FILES} -perm -4000 -print",
    "setgid": f"{_FILES} -perm -2000 -print",
    "kernel-config": "cat /boot/config-$(uname -r) /usr/lib/modules/$(uname -r)/config 2>/dev/null",
    "kernel-version": "cat /proc/version",
    "command-line": "cat /proc/cmdline",
    "sysctl": "sysctl -a 2>/dev/null",
    "lockdown": "cat /sys/kernel/security/lockdown",
}
_LYNIS = f"""cd {MOUNTED}/usr/share/lynis
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
{MOUNTED}/usr/sbin/lynis audit system --quick --no-colors --quiet --plugindir {MOUNTED}/etc/lynis/plugins \\
    --profile {MOUNTED}/etc/lynis/default.prf --logfile /run/lynis.log --report-file /run/lynis.dat >/dev/null
cat /run/lynis.dat
"""
_OPENSCAP = """cd {mounted}
export LD_LIBRARY_PATH=$PWD/usr/lib/x86_64-linux-gnu OSCAP_SCHEMA_PATH=$PWD/usr/share/openscap/schemas
export OSCAP_XSLT_PATH=$PWD/usr/share/openscap/xsl OSCAP_CPE_PATH=$PWD/usr/share/openscap/cpe
./usr/bin/oscap --version | head -1
./usr/bin/oscap xccdf eval --progress --profile xccdf_org.ssgproject.content_profile_{profile} \\
    usr/share/xml/scap/ssg/content/ssg-debian13-ds.xml 2>/run/oscap.log
[ $? = 0 ] || [ $? = 2 ] || cat /run/oscap.log
"""


def ask(running: Running, kept: Path, packages: str = "") -> None:
    """What is cheap first, as the checkers leave their traces. `packages`: dpkg's record of them, for OpenSCAP, where
    the system has none of its own. MachineError."""
    for name, question in QUESTIONS.items():
        _keep(running, kept, name, question, FEW_MINUTES)
    _keep(running, kept, "lynis", _LYNIS, LONG)
    if packages:
        _record(running, packages)
    for profile in PROFILES:
        question = _OPENSCAP.format(mounted=MOUNTED, profile=profile)
        _keep(running, kept, f"{OPENSCAP}{profile}", question, LONG)


def _keep(running: Running, kept: Path, name: str, question: str, seconds: float) -> None:
    print(f"image: {kept.name}: {name}", flush=True)
    (kept / f"{name}.txt").write_text(running.run(question, seconds).text)


def _record(running: Running, packages: str) -> None:
    running.check("mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates")
    running.check(f"cat >/var/lib/dpkg/status <<'END'\n{packages}\nEND")


def texts(kept: Path) -> Mapping[str, str]:
    """All that was kept, by name."""
    return {path.stem: path.read_text() for path in sorted(kept.iterdir()) if path.suffix in (".txt", ".json")}
