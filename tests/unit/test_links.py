"""Which links a box has, and what is demanded of them in the trial of a system."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.cli import reaching
from appliance.cli.findings import Finding
from hardware import links
from hardware.links import Link
from hardware.slots import variables
from tests import boxes

A, B = "a8:b8:e0:05:1c:4d", "a8:b8:e0:05:1c:4e"
OWN = {"lo": "127.0.0.1", "enp1s0": "192.168.1.7", "enp2s0": "169.254.3.4", "enp3s0": "192.168.1.8"}
USED = Link(A, "enp1s0", carrier=True, leads_out=True)
COUNTED = f"{variables.FOLDER}/{reaching.COUNTED}-{variables.LOADER}"


def judged(before: Link, *now: Link, settled: bool = True) -> tuple[bool, str]:
    [found] = links.compare([before], now, settled)
    assert found.ok or found.remedy
    return found.ok, found.detail


# ---- judging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", [True, False, None])
@pytest.mark.parametrize("leads_out", [True, False])
def test_a_link_that_is_gone(carrier: bool | None, leads_out: bool) -> None:
    ok, detail = judged(Link(A, "enp1s0", carrier, leads_out), Link(B, "enp1s0", carrier=True, leads_out=True))
    assert not ok
    assert A in detail


@pytest.mark.parametrize(
    ("carrier", "leads_out", "ok", "detail"),
    [
        (True, True, True, "with an address"),
        (False, True, True, "with an address"),  # a fixed one
        (False, False, True, "without a carrier"),
        (True, False, False, "without an address"),
        (None, False, False, "nothing has set it up"),
    ],
)
def test_a_link_that_led_out(carrier: bool | None, leads_out: bool, ok: bool, detail: str) -> None:
    found = judged(USED, Link(A, "eth0", carrier, leads_out))
    assert found[0] == ok
    assert detail in found[1]


@pytest.mark.parametrize(("carrier", "leads_out"), [(True, False), (False, True), (False, False), (None, False)])
@pytest.mark.parametrize("now", [True, False, None])
def test_of_a_link_that_led_nowhere_only_its_presence(carrier: bool | None, leads_out: bool, now: bool | None) -> None:
    assert judged(Link(A, "enp1s0", carrier, leads_out), Link(A, "enp1s0", now, leads_out=False))[0]


def test_a_carrier_has_its_time_to_come() -> None:
    there = Link(A, "enp1s0", carrier=False, leads_out=False)
    assert not judged(USED, there, settled=False)[0]
    assert judged(USED, there, settled=True)[0]


def test_one_address_of_several_interfaces_as_a_switch_has_them() -> None:
    conduit, port = Link(A, "eth0", carrier=True, leads_out=False), Link(A, "lan1", carrier=False, leads_out=False)
    assert judged(USED, conduit, port)[0]
    assert judged(USED, conduit, Link(A, "lan2", carrier=True, leads_out=True))[0]
    assert not judged(USED, conduit, Link(A, "lan1", carrier=True, leads_out=False))[0]


def test_a_box_without_links_and_one_that_got_more() -> None:
    assert links.compare([], [USED], settled=True) == []
    assert links.compare([], [], settled=True) == []


# ---- reading --------------------------------------------------------------------------------------------------------


def lay(root: Path, carriers: Mapping[str, str], inet6: str = "") -> Path:
    boxes.box("mini_pc", root)
    for name, text in carriers.items():
        (root / "sys/class/net" / name / "carrier").write_text(f"{text}\n")
    boxes.write(root / "proc/net/if_inet6", inet6.encode())
    return root


def inet6(name: str, address: str, scope: str, flags: str) -> str:
    return f"{address} 02 40 {scope} {flags} {name:>8}\n"


def test_the_links_of_a_mini_pc(tmp_path: Path) -> None:
    lines = [
        inet6("enp4s0", "20010db8000000000000000000000007", "00", "80"),
        inet6("enp3s0", "fe80000000000000aab8e0fffe051c4f", "20", "80"),
        inet6("wlp5s0", "20010db8000000000000000000000008", "00", "40"),  # whether another has it is not known yet
    ]
    lay(tmp_path, {"enp1s0": "1", "enp2s0": "1", "enp3s0": "0"}, "".join(lines))
    found = {one.name: one for one in links.find(tmp_path, ipv4=lambda name: OWN.get(name, ""))}
    assert set(found) == {"enp1s0", "enp2s0", "enp3s0", "enp4s0", "wlp5s0", "enx0"}  # no bridge, and not lo
    assert found["enp1s0"] == USED
    assert [one.carrier for one in found.values()] == [True, True, False, None, None, None]
    assert [name for name, one in found.items() if one.leads_out] == ["enp1s0", "enp3s0", "enp4s0"]


def test_the_address_burnt_in_is_believed_before_the_one_that_was_set(tmp_path: Path) -> None:
    lay(tmp_path, {})
    net = tmp_path / "sys/class/net"
    (net / "enp1s0/addr_assign_type").write_text("3\n")
    (net / "enp2s0/device/physfn").mkdir()  # one that software made
    named = {one.name: one.address for one in links.find(tmp_path)}
    assert "enp1s0" not in named
    assert "enp2s0" not in named
    asked = links.find(tmp_path, permanent=lambda name: B.upper() if name == "enp1s0" else "")
    assert asked[0] == Link(B, "enp1s0", carrier=None, leads_out=False)


def test_a_tree_without_anything(tmp_path: Path) -> None:
    assert links.find(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "nonsense\n", "fe80 02 40 00 80 eth0\n", f"{'0' * 32} 02 40 00 zz eth0\n"])
def test_lines_that_are_none(text: str) -> None:
    assert links.ipv6_outward(text) == frozenset()


def test_the_links_of_this_machine() -> None:
    found = links.find()
    assert "lo" not in [one.name for one in found]
    assert all(one.address for one in found)
    assert links.ipv4_of("lo") in ("127.0.0.1", "")
    assert links.ipv4_of("no-such-link") == ""


# ---- the trial ------------------------------------------------------------------------------------------------------


def trial(root: Path, running: str = "1.2", counted: bool = True) -> Path:
    """Of this version; the folder of the state."""
    boxes.write(root / "etc/os-release", f"IMAGE_VERSION={running}\n".encode())
    if counted:
        path = f"\\EFI\\Linux\\millwright_{running}+2-1.efi\0"
        boxes.write(root / COUNTED, b"\6\0\0\0" + path.encode("utf-16-le"))
    return root / "state"


def found(root: Path, up_s: float = 300.0) -> list[Finding]:
    return list(reaching.findings(root / "state", up_s, root))


def test_a_trial_that_has_lost_a_link_fails_and_others_are_told(tmp_path: Path) -> None:
    state = trial(lay(tmp_path, {"enp1s0": "0"}))
    gone = Link("00:11:22:33:44:55", "enp9s0", carrier=False, leads_out=False)
    reaching.note(state, "1.2", (USED, gone))
    assert [(one.name, one.status) for one in found(tmp_path)] == [("link enp1s0", "ok"), ("link enp9s0", "fail")]
    assert [one.status for one in found(tmp_path, up_s=5.0)] == ["fail", "fail"]


@pytest.mark.parametrize(("running", "counted"), [("1.2", False), ("1.1", True), ("", True)])
def test_where_nothing_is_on_trial_nothing_is_demanded(tmp_path: Path, running: str, counted: bool) -> None:
    reaching.note(trial(tmp_path, running, counted), "1.2", (USED,))
    assert found(tmp_path) == []


def test_a_trial_without_a_note_or_without_links(tmp_path: Path) -> None:
    state = trial(tmp_path)
    assert found(tmp_path) == []
    reaching.note(state, "1.2", ())
    assert found(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"rot", b"{}"])
def test_a_note_that_is_damaged_blesses_nothing(tmp_path: Path, content: bytes) -> None:
    path = trial(tmp_path) / reaching.NOTE
    if content == b"{}":
        reaching.files.write_sealed(path, content)
    else:
        boxes.write(path, content)
    [one] = found(tmp_path)
    assert (one.name, one.status) == ("links", "fail")
    assert one.remedy


def test_a_note_of_a_later_version_is_read(tmp_path: Path) -> None:
    state = trial(tmp_path)
    link = b'{"address": "a8", "name": "enp9s0", "carrier": null, "leads_out": false, "speed": 1000}'
    reaching.files.write_sealed(state / reaching.NOTE, b'{"version": "1.2", "links": [%s], "by": "somebody"}' % link)
    assert [one.status for one in found(tmp_path)] == ["fail"]
