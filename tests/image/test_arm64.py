"""The image of arm64, on a board with EFI firmware that QEMU makes up: `tools/image test -k arm64`.

Apart from the others, as it wants a builder of its own, and a build in which the other processor is emulated.
"""

import re
from collections.abc import Iterator

import pytest

from hardware.slots import TRIES
from tests.image.boxes import EPOCH, OLD, give_witness, has_its_data, up, witness_stands
from tools.imaging import builder, building, keys, places, releasing
from tools.imaging.machine import Machine, Running

LONG = 1800.0
UNITS = ("vault", "broker", "record", "detect", "update", "ingest")


@pytest.fixture(scope="module")
def board(request: pytest.FixtureRequest) -> Iterator[Running]:
    """From the factory, as it runs for the first time."""
    if "arm64" not in request.config.getoption("keyword"):
        pytest.skip("apart from the rest: tools/image test -k arm64")
    where = places.find(places.ARM)
    builder.make(where)
    keys.make(where)
    image = building.renew(where, building.order("dev", OLD, EPOCH))
    machine = Machine(where, where.trials / "first")
    machine.prepare(releasing.raw_image(image))
    with machine.running() as running:
        running.wait_probe(LONG)
        yield running
        running.shut_down()


def test_it_starts_offline_with_no_failed_unit(board: Running) -> None:
    assert board.check("uname -m").strip() == "aarch64"
    state = board.run("systemctl is-system-running --wait", LONG)
    failed = board.run("systemctl --failed --no-legend --plain; journalctl -b -p err --no-pager | tail -40")
    assert state.text.strip() == "running", failed.text
    print(board.check("systemd-analyze"))
    assert board.run("ip route get 192.0.2.1 && ping -c1 -W2 192.0.2.1").code != 0


def test_every_service_answers(board: Running) -> None:
    board.check(f"systemctl is-active {' '.join(f'millwright-{name}.service' for name in UNITS)}")
    answer = board.run("millwright health --timeout 600", LONG)
    print(answer.text)
    assert answer.code == 0, answer.text
    assert "open by fingerprint" in answer.text


def test_what_started_was_signed(board: Running) -> None:
    said = board.check("bootctl status --no-pager")
    assert re.search(r"Secure Boot: enabled \(user\)", said), said
    assert said.count("systemd-bootaa64.efi") > TRIES, said  # on the boot partition, and by the box's own boot options
    assert "systemd-bootx64.efi" not in said
    assert "[integrity]" in board.check("cat /sys/kernel/security/lockdown")


def test_the_root_is_what_was_signed(board: Running) -> None:
    said = board.check("veritysetup status root")
    assert "verified" in said, said
    assert "panic_on_corruption" in board.check("dmsetup table root")
    roothash = re.search(r"roothash=([0-9a-f]{64})", board.check("cat /proc/cmdline"))
    assert roothash is not None
    assert roothash[1] in said
    assert board.run("touch /usr/x || mount -o remount,rw /").code != 0


def test_the_data_open_by_the_parts_of_the_board(board: Running) -> None:
    """QEMU's TPM for this machine is one that Debian's kernel for arm64 has no driver for."""
    has_its_data(board)
    header = board.check("cryptsetup luksDump /dev/disk/by-partlabel/millwright-data")
    assert "millwright-fingerprint" in header
    assert "systemd-recovery" in header
    board.wait_for("does not protect from: the whole box, stolen", 60)


def test_it_starts_again_with_its_data(board: Running) -> None:
    give_witness(board)
    said = len(board.console())
    board.run("systemctl --no-block reboot")
    board.wait_for("BdsDxe: starting", LONG, said)
    up(board)
    witness_stands(board)
    answer = board.run("millwright health --timeout 600", LONG)
    assert answer.code == 0, answer.text
