"""A seed on the boot partition of a new box: a wrong one is told and does no harm, a right one is applied and wiped."""

from pathlib import Path

from tests.image import surgery
from tests.image.boxes import has_its_data, recovery_key, state
from tools.imaging import releasing
from tools.imaging.machine import Machine
from tools.imaging.places import Places

SEED = """host_name = "press-2"

[[network]]
interface = "en*"
addresses = ["192.0.2.10/24"]
"""
WRONG = SEED.replace("192.0.2.10/24", "192.0.2.999/24").replace("press-2", "press-1")  # it may lie on in free clusters


def test_a_wrong_seed_is_told_and_a_right_one_applied_and_wiped(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "seeded")
    machine.prepare(releasing.raw_image(old))
    surgery.sow(machine, WRONG)
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running"
        recovery_key(running)
        said = running.wait_for(r"The seed was not applied:(?s:.{0,400})", 60)[0]
        assert "192.0.2.999/24" in said, said
        assert running.check("hostname").strip() == "millwright"
        assert "192.0.2.10" not in running.check("ip -4 addr")
        running.shut_down()
    assert surgery.SEED in surgery.esp(machine, "mdir", "-b", "-a", "::/")
    surgery.sow(machine, SEED)
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running"
        has_its_data(running)
        assert running.check("hostname").strip() == "press-2"
        assert running.check("cat /var/lib/etc/hostname").strip() == "press-2"  # /etc has it from the next start on
        assert "192.0.2.10/24" in running.check("ip -4 addr")
        running.shut_down()
    assert surgery.SEED not in surgery.esp(machine, "mdir", "-b", "-a", "::/")
    begin, length = surgery.partition(machine, "esp")
    with (machine.folder / machine.disk).open("rb") as disk:
        disk.seek(begin)
        assert b"press-2" not in disk.read(length)
