"""A new box, without a network: what runs, what is locked, and whether it does its work."""

import json
import math
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.image.boxes import has_its_data, recovery_key
from tools.imaging import readings
from tools.imaging.machine import Running

FEW_MINUTES = 600.0
TOPIC = f"mw/v1/reading/{readings.ASSET}"
ALARM = f"mw/v1/alarm/{readings.ASSET}"  # of an anomaly: that no more readings come is told below it
ROWS = 460  # on guard from 400 on
UNITS = ("vault", "broker", "record", "detect", "update", "ingest")
CONFIGURED = ("infer", "forward", "metrics")  # and only then they run
ONE_SHOTS = ("boot-options", "deadline", "first-boot", "health", "ports", "settle", "system-update")
LIMITS = {"millwright-infer.service": 3.5}
LIMIT = 2.0


def test_it_starts_offline_with_no_failed_unit(first_boot: Running) -> None:
    state = first_boot.run("systemctl is-system-running --wait", FEW_MINUTES)
    failed = first_boot.run("systemctl --failed --no-legend --plain; journalctl -b -p err --no-pager | tail -40")
    assert state.text.strip() == "running", failed.text
    assert first_boot.run("ip route get 192.0.2.1 && ping -c1 -W2 192.0.2.1").code != 0


def test_its_data_were_there_before_its_services(first_boot: Running) -> None:
    has_its_data(first_boot)
    times = {
        unit: int(first_boot.check(f"systemctl show --property={moment} --value {unit}"))
        for unit, moment in (
            ("var.mount", "ActiveEnterTimestampMonotonic"),
            *((f"millwright-{name}.service", "ExecMainStartTimestampMonotonic") for name in UNITS),
        )
    }
    assert min(times, key=lambda unit: times[unit]) == "var.mount", times


def test_each_service_runs_as_a_user_of_its_own(first_boot: Running) -> None:
    units = " ".join(f"millwright-{name}.service" for name in UNITS)
    first_boot.check(f"systemctl is-active {units}")
    users = first_boot.check(f"systemctl show --property=User --value {units}").split()
    assert len(users) == len(UNITS)
    assert set(users) == {"mw-vault", "mw-broker", "mw-record", "mw-models", "mw-ingest"}


def test_it_is_healthy_by_its_own_word(first_boot: Running) -> None:
    answer = first_boot.run("millwright health --timeout 300", FEW_MINUTES)
    assert answer.code == 0, answer.text


def test_secure_boot_is_in_force(first_boot: Running) -> None:
    said = first_boot.check("bootctl status --no-pager")
    assert re.search(r"Secure Boot: enabled \(user\)", said), said
    assert "Measured UKI: yes" in said


def test_the_kernel_is_locked_down_and_takes_no_unsigned_module(first_boot: Running) -> None:
    assert "[integrity]" in first_boot.check("cat /sys/kernel/security/lockdown")
    first_boot.check("xz -dc /lib/modules/$(uname -r)/kernel/fs/fat/vfat.ko.xz | head -c 20000 >/run/none.ko")
    assert first_boot.run("insmod /run/none.ko").code != 0
    assert first_boot.run("dd if=/dev/mem of=/dev/null bs=4k count=1 skip=256").code != 0


def test_the_root_is_what_was_signed_and_cannot_be_written(first_boot: Running) -> None:
    said = first_boot.check("veritysetup status root")
    assert "verified" in said, said
    assert "panic_on_corruption" in first_boot.check("dmsetup table root")
    command_line = first_boot.check("cat /proc/cmdline")
    roothash = re.search(r"roothash=([0-9a-f]{64})", command_line)
    assert roothash is not None
    assert roothash[1] in said
    assert first_boot.run("touch /usr/x || mount -o remount,rw /").code != 0
    assert first_boot.run("touch /etc/x").code != 0


def test_the_data_open_by_the_tpm_and_fill_the_disk(first_boot: Running) -> None:
    header = first_boot.check("cryptsetup luksDump /dev/disk/by-partlabel/millwright-data")
    assert "systemd-tpm2" in header
    assert "systemd-recovery" in header
    assert re.search(r"tpm2-hash-pcrs:\s+7\b", header), header
    assert re.search(r"tpm2-pubkey-pcrs:\s+11\b", header), header
    assert "/dev/mapper/data /var ext4" in first_boot.check("grep ' /var ' /proc/mounts")
    assert int(first_boot.check("df --output=size -BG /var | tail -1").strip().rstrip("G")) >= 6


def test_recovery_keys_are_shown_once_and_kept_nowhere(first_boot: Running) -> None:
    key = recovery_key(first_boot)
    searched = f"grep -rlsF --exclude='probe.*' '{key}' /var /run /etc /tmp; journalctl -b | grep -F '{key}'"
    assert first_boot.run(searched).text == ""


def test_nothing_is_open_but_what_is_configured(first_boot: Running) -> None:
    listening = first_boot.check("ss -Hltun | awk '{print $5}'").split()
    outside = {one for one in listening if not re.match(r"127\.|\[::1\]|\[fe80|.*%lo", one)}
    assert {one.rsplit(":", 1)[1] for one in outside} <= {"8883", "68", "546"}
    rules = first_boot.check("nft list ruleset")
    assert re.search(r"hook input priority filter; policy drop", rules)
    assert re.search(r"hook forward priority filter; policy drop", rules)
    assert re.search(r"elements = \{ 8883 \}", rules)


def test_no_core_is_dumped_and_the_clock_has_a_floor(first_boot: Running) -> None:
    assert first_boot.check("sysctl -n kernel.core_pattern").strip() == "|/bin/false"
    assert first_boot.check("ulimit -c").strip() == "0"
    floor = int(first_boot.check("stat -c %Y /usr/lib/clock-epoch"))
    assert floor > 1_700_000_000
    assert int(first_boot.check("date +%s")) >= floor


@pytest.mark.parametrize("name", [*UNITS, *CONFIGURED, *ONE_SHOTS])
def test_its_unit_is_sandboxed(first_boot: Running, name: str) -> None:
    """All but ssh: what a seed's key opens is a shell for the administrator, and held by what the image is."""
    unit = f"millwright-{name}.service"
    rows = json.loads(first_boot.check(f"systemd-analyze security --json=short --no-pager {unit}"))
    said = first_boot.check(f"systemd-analyze security --no-pager {unit} | tail -1")
    exposure = re.search(r": (\d+\.\d+) ", said)
    assert exposure is not None
    print(f"{unit} {exposure[1]}")
    worst = [row for row in rows if row.get("set") is False]
    assert float(exposure[1]) <= LIMITS.get(unit, LIMIT), worst


def test_a_reading_over_tls_ends_as_an_alarm_seen_from_outside(first_boot: Running, tmp_path: Path) -> None:
    readings.certify(first_boot, tmp_path, ALARM)
    rows = "\n".join(json.dumps(row) for row in _rows())
    options = ["-t", ALARM, "-C", "1", "-W", "900"]
    listener = readings.client("mosquitto_sub", first_boot, tmp_path, *options)
    with subprocess.Popen(listener, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as alarms:
        sent = readings.client("mosquitto_pub", first_boot, tmp_path, "-q", "1", "-t", TOPIC, "-l")
        subprocess.run(sent, input=rows + "\n", text=True, check=True, timeout=600)
        heard, complaint = alarms.communicate(timeout=900)
    assert b"vibration" in heard, complaint  # CBOR


def test_a_device_without_a_certificate_is_not_heard(first_boot: Running, tmp_path: Path) -> None:
    readings.certify(first_boot, tmp_path)
    authority = ["--insecure", "--cafile", str(tmp_path / "ca.pem")]
    sent = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(first_boot.port), *authority, "-t", TOPIC, "-m", "{}"]
    assert subprocess.run(sent, check=False, timeout=120).returncode != 0


def _rows() -> list[dict[str, object]]:
    dice = random.Random(7)
    rows: list[dict[str, object]] = []
    for number in range(ROWS):
        wave = math.sin(number / 7)
        broken = 6.0 if number > ROWS - 40 else 0.0
        values = {"vibration": 2 + 0.2 * wave + dice.gauss(0, 0.05) + broken, "temperature": 60 + wave}
        rows.append({"values": values, "at": _time(number)})
    return rows


def _time(number: int) -> str:
    minutes, seconds = divmod(number, 60)
    return f"2026-01-31T12:{minutes:02}:{seconds:02}Z"
