"""The figures of the image: what checkers write is read, and put beside plain Debian's."""

import json
from dataclasses import replace

import pytest

from tools.imaging import report_figures, report_table
from tools.imaging.report_figures import UnreadError

LYNIS = """# Lynis Report
lynis_version=3.1.4
suggestion[]=BOOT-5122|Set a password on GRUB boot loader|-|-|
suggestion[]=SSH-7408|Consider hardening SSH configuration |MaxSessions (set 10 to 2)|-|
warning[]=FIRE-4512|iptables module(s) loaded, but no rules active|-|-|
lynis_tests_done=231
hardening_index=71
"""
OPENSCAP = """OpenSCAP command line tool (oscap) 1.4.2
xccdf_org.ssgproject.content_rule_package_aide_installed:fail
xccdf_org.ssgproject.content_rule_sysctl_kernel_dmesg_restrict:pass
xccdf_org.ssgproject.content_rule_sshd_disable_root_login:pass
xccdf_org.ssgproject.content_rule_grub2_password:notapplicable
"""
KERNEL = json.dumps(
    [
        {
            "option_name": name,
            "type": kind,
            "desired_val": "is not set",
            "check_result": "OK",
            "check_result_bool": right,
        }
        for name, kind, right in (
            ("CONFIG_BUG", "kconfig", True),
            ("CONFIG_KEXEC", "kconfig", False),
            ("nosmt", "cmdline", False),
            ("kernel.kptr_restrict", "sysctl", True),
        )
    ]
)
SECURITY = json.dumps(
    [
        {"unit": "millwright-vault.service", "exposure": "0.6", "predicate": "SAFE", "happy": ""},
        {"unit": "cron.service", "exposure": "9.6", "predicate": "UNSAFE", "happy": ""},
        {"unit": "emergency.service", "exposure": "9.5", "predicate": "UNSAFE", "happy": ""},
        {"unit": "probe.service", "exposure": "9.5", "predicate": "UNSAFE", "happy": ""},
    ]
)
PORTS = """udp UNCONN 0 0 10.0.2.15%enp0s2:68 0.0.0.0:*
udp UNCONN 0 0 [fe80::1]%enp0s2:546 [::]:*
tcp LISTEN 0 100 127.0.0.1:1883 0.0.0.0:*
tcp LISTEN 0 100 [::1]:1883 [::]:*
tcp LISTEN 0 100 *:8883 *:*
tcp LISTEN 0 128 [::]:22 [::]:*
"""
MEMORY = "MemTotal:  2000000 kB\nMemFree: 1 kB\nMemAvailable:   1675000 kB\n"
TEXTS = {
    "lynis": LYNIS,
    "openscap-cis_level1_server": OPENSCAP,
    "kernel-hardening": KERNEL,
    "security": SECURITY,
    "exposures": "millwright-settle.service 9.1\nsystemd-analyze: a warning\n",
    "running": "millwright-vault.service\ncron.service\nprobe.service\n",
    "ports": PORTS,
    "memory": MEMORY,
    "setuid": "",
    "setgid": "/usr/bin/crontab\n",
    "times": '{"up": 120.4, "let-in": 100.0, "score": 130.6}',
    "facts": '{"packages": "240", "image-bytes": "374000000"}',
    "lockdown": "none [integrity] confidentiality\n",
}


def test_lynis_is_read_its_warnings_first() -> None:
    found = report_figures.lynis(LYNIS)
    assert (found.version, found.index, found.tests) == ("3.1.4", 71, 231)
    assert [test for test, _ in found.advice] == ["FIRE-4512", "BOOT-5122", "SSH-7408"]
    assert found.advice[2][1] == "Consider hardening SSH configuration: MaxSessions (set 10 to 2)"


def test_what_did_not_come_to_its_end_is_no_figure() -> None:
    with pytest.raises(UnreadError, match="did not come to its end"):
        report_figures.lynis("lynis_version=3.1.4\n")
    with pytest.raises(UnreadError, match="no rule"):
        report_figures.rules("Fatal: no such profile\n")
    with pytest.raises(UnreadError, match="no such file"):
        report_figures.kernel("[!] ERROR: no such file\n")


def test_rules_are_counted_by_their_result() -> None:
    found = report_figures.rules(OPENSCAP)
    assert (found.count("pass"), found.count("fail"), found.count("error")) == (2, 1, 0)
    assert found.by_result["fail"] == ("package_aide_installed",)


def test_the_kernels_settings_are_counted_by_kind() -> None:
    found = report_figures.kernel(KERNEL)
    assert found.right == {"kconfig": 1, "sysctl": 1}
    assert found.wrong["cmdline"] == ("nosmt (wanted: is not set)",)


def test_only_what_others_reach_is_an_open_port() -> None:
    assert report_figures.open_ports(PORTS) == ("tcp 22", "tcp 8883", "udp 68")


def test_memory_in_use_is_all_but_what_is_available() -> None:
    assert report_figures.memory_in_use(MEMORY) == 333


def test_the_mean_is_of_services_that_run_but_for_the_tests_own() -> None:
    system = report_figures.read(TEXTS)
    assert system.mean_exposure == pytest.approx(5.1)
    assert system.of_ours == {"millwright-settle.service": 9.1, "millwright-vault.service": 0.6}


def test_the_table_has_both_and_says_what_was_not_measured() -> None:
    plain = replace(report_figures.read({}), memory_mb=199, lynis=report_figures.lynis(LYNIS))
    told = report_table.markdown(report_figures.read(TEXTS), plain, "dev 1.0")
    assert "| | image, dev 1.0 | plain Debian 13 |" in told
    assert "| memory in use when idle | 333 MB | 199 MB |" in told
    assert "| power on to the first judged reading | 131 s | not measured |" in told
    assert "| OpenSCAP, `cis_level1_server`: passed, failed | 2, 1 (1 notapplicable) | not measured |" in told
    assert "| disk as it is handed out, `zstd -10` | 374 MB | not measured |" in told
    assert "| files with setuid, with setgid | 0, 1 | not measured |" in told
    assert "- FIRE-4512*: iptables" in told
    assert "millwright-vault 0.6" in told
