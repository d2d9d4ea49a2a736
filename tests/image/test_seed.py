"""A seed, on the boot partition or a stick: a wrong one is told and harms nothing, a right one is applied and wiped."""

from pathlib import Path

from appliance.config.seed import LABEL
from tests.image import surgery
from tests.image.boxes import has_its_data, recovery_key, state, with_stick
from tools.imaging import releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

STICK_BYTES = 64 << 20
SCREEN = ("-device", "VGA")
SHOWN = "/dev/vcs1"  # what is on the screen at this moment, row by row
SEED = """host_name = "press-2"

[[network]]
interface = "en*"
addresses = ["192.0.2.10/24"]
"""
WITH_SECRETS = """host_name = "press-9"

[secrets]
"mqtt/plant" = "out-of-sight"

[config.broker]
tls_port = 8884
"""
WRONG = SEED.replace("192.0.2.10/24", "192.0.2.999/24").replace("press-2", "press-1")  # it may lie on in free clusters


def test_a_wrong_seed_is_told_and_a_right_one_applied_and_wiped(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "seeded", extra=SCREEN)
    machine.prepare(releasing.raw_image(old))
    surgery.sow(machine, WRONG)
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running"
        recovery_key(running)
        said = running.wait_for(r"The seed was not applied:(?s:.{0,400})", 60)[0]
        assert "192.0.2.999/24" in said, said
        _is_on_the_screen(running, "The seed was not applied:", "192.0.2.999/24")
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


def test_a_seed_on_a_stick_gives_secrets_and_settings_at_the_first_start(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "seeded-by-stick")
    machine.prepare(releasing.raw_image(old))
    stick = _stick(machine, WITH_SECRETS)
    with with_stick(machine, stick, writable=True).running() as running:
        running.wait_probe()
        assert state(running) == "running"
        has_its_data(running)
        assert running.check("hostname").strip() == "press-9"
        assert "mqtt/plant" in running.check("millwright vault list")
        assert ":8884" in running.check("ss -Hltn")
        assert "out-of-sight" not in running.check("journalctl -b --no-pager; cat /etc/millwright/millwright.toml")
        running.shut_down()
    assert surgery.SEED not in surgery.inside(where, ["mdir", "-b", "-a", "-i", str(stick), "::/"])
    assert b"out-of-sight" not in stick.read_bytes()


def _is_on_the_screen(running: Running, *lines: str) -> None:
    """Above the prompt, which getty draws when all else has started; nobody need have watched the start."""
    running.check(f"for i in $(seq 120); do grep -qa 'login:' {SHOWN} && break; sleep 1; done")
    screen = running.check(f"cat {SHOWN}")
    for one in (*lines, "login:"):
        assert one in screen, screen


def _stick(machine: Machine, seed: str) -> Path:
    """As a person makes one: FAT, with the label that is asked for, and the seed on it."""
    stick, file = machine.folder / "seed.img", machine.folder / surgery.SEED
    file.write_text(seed)
    with stick.open("wb") as image:
        image.truncate(STICK_BYTES)
    surgery.inside(machine.where, ["mkfs.vfat", "-n", LABEL, str(stick)])
    surgery.inside(machine.where, ["mcopy", "-i", str(stick), str(file), f"::/{surgery.SEED}"])
    assert seed.encode() in stick.read_bytes()
    return stick
