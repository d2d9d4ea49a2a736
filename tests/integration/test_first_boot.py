"""`millwright first-boot`: seeds that are right, wrong, missing, late, half applied; sticks that cannot be written."""

import asyncio
import json
import stat
import tomllib
from pathlib import Path
from typing import Protocol

import pytest

from appliance.cli import sowing
from appliance.errors import StoreError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJsdWIdnKnSkXhLr3cEDZJ+mKx1sXo8pJqGqQ0c0n3V8 me@there"
CANARY = "s3cret-canary"
SECRETS = f'[secrets]\n"mqtt/plant" = "{CANARY}"\n'
SEED = f'host_name = "press-2"\n[ssh]\nkeys = ["{KEY}"]\n{SECRETS}[config.broker]\ntls_port = 8883\n'


class Quiet(Protocol):
    """See conftest.py."""

    folder: Path

    @property
    def config(self) -> Path: ...

    async def run(self, *words: str) -> tuple[int, str, str]: ...


class Site:
    """A box's files in a folder."""

    def __init__(self, box: Quiet) -> None:
        self.box, self.root = box, box.folder / "root"
        self.seed = self.root / "boot/millwright-seed.toml"
        self.seed.parent.mkdir(parents=True)
        self.console = box.folder / "console"
        self.installed = self.root / "etc/millwright/millwright.toml"
        self.installed.parent.mkdir(parents=True)
        self.image = self.root / "usr/lib/millwright/image.toml"
        self.image.parent.mkdir(parents=True)
        self.image.write_text(box.config.read_text() + '[vault]\nbackend = "plain"\n')
        self.installed.write_text('base = "../../usr/lib/millwright/image.toml"\n')
        box.config.unlink()
        box.config.symlink_to(self.installed)

    def run(self, *words: str) -> tuple[int, str]:
        self.console.touch()
        asked = ("first-boot", "--root", str(self.root), "--console", str(self.console), *words)
        code, output, errors = asyncio.run(self.box.run(*asked))
        assert errors == ""
        return code, output

    def vault(self, *words: str) -> str:
        code, output, errors = asyncio.run(self.box.run("vault", *words))
        assert code == 0, errors
        return output

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def everything(self) -> bytes:
        """Of all files of the box that are no vault's."""
        return b"".join(path.read_bytes() for path in self.box.folder.rglob("*") if path.is_file())


@pytest.fixture
def site(quiet_box: Quiet) -> Site:
    return Site(quiet_box)


def test_a_seed_is_applied_and_wiped(site: Site) -> None:
    site.seed.write_text(SEED)
    code, output = site.run()
    assert (code, site.seed.exists()) == (0, False)
    assert site.text("etc/hostname") == "press-2\n"
    assert site.text("etc/millwright/ssh/authorized_keys") == f"{KEY}\n"
    assert stat.S_IMODE((site.root / "etc/millwright/ssh").stat().st_mode) == 0o755
    assert "tls_port = 8883" in site.installed.read_text()
    assert site.vault("get", "mqtt/plant") == CANARY
    assert {"tls/authority", "tls/broker"} <= set(site.vault("list").split())
    assert CANARY not in output + site.console.read_text()
    assert CANARY.encode() not in site.everything()


def test_what_the_image_says_is_not_copied_into_the_box(site: Site) -> None:
    """So that a later image can say it otherwise."""
    site.seed.write_text(SEED)
    site.run()
    of_box = tomllib.loads(site.installed.read_text())
    assert of_box.pop("base") == "../../usr/lib/millwright/image.toml"
    assert of_box.keys() == tomllib.loads(SEED)["config"].keys()


def test_the_recovery_key_is_shown_on_the_console_alone(site: Site) -> None:
    _, output = site.run()
    shown = site.console.read_text()
    assert "It is shown once, here" in shown
    group = shown.split("shown once, here:\n\n")[1][:29]
    assert len(group.split("-")) == 6
    assert group not in output + site.text("run/issue.d/60-millwright.issue")


def test_its_key_opens_the_vault(site: Site) -> None:
    site.run()
    lines = site.console.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "shown once" in line) + 2
    (site.box.folder / "key").write_text("\n".join(lines[start : start + 3]) + "\n")
    assert "opened, under a new key" in site.vault("recover", "--recovery-file", str(site.box.folder / "key"))


def test_a_wrong_seed_changes_nothing_and_says_so_on_the_console(site: Site) -> None:
    site.seed.write_text(SEED.replace("[ssh]", "[shh]"))
    before = site.installed.read_text()
    code, output = site.run()
    said = site.console.read_text()
    assert code == 2
    assert f"{site.seed}:2: shh: there is no such key" in said
    assert "Did you mean 'ssh'?" in said
    assert said.strip() in output + said
    assert "shh" in site.text("run/issue.d/60-millwright.issue")
    assert site.seed.exists()
    assert (site.installed.read_text(), (site.root / "etc/hostname").exists()) == (before, False)
    assert not (site.box.folder / "state/vault/vault.1").exists()
    site.seed.write_text(SEED)
    assert site.run()[0] == 0
    assert not site.seed.exists()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[connectors.hots]\n", ":1: connectors.hots"),
        ("[connectors.host]\ninterval = 1\n", ":2: connectors.host.interval"),
        ("[config.brocker]\n", ":1: config.brocker"),
        ('[config.broker]\ntls_port = "x"\n', ":2: config.broker.tls_port"),
        ('[recovery]\nrecipients = ["nonsense"]\n', ":2: recovery.recipients"),
    ],
)
def test_mistakes_that_only_other_parts_of_the_box_see(site: Site, text: str, where: str) -> None:
    site.seed.write_text(text)
    assert site.run()[0] == 2
    assert where in site.console.read_text()


def test_a_check_changes_nothing(site: Site) -> None:
    site.seed.write_text(SEED)
    assert site.run("--check") == (0, f"{site.seed}: in order\n")
    assert site.seed.exists()
    assert not (site.root / "etc/hostname").exists()


def test_without_a_seed(site: Site) -> None:
    before = site.installed.read_text()
    assert site.run()[0] == 0
    assert site.installed.read_text() == before
    assert "tls/authority" in site.vault("list")
    assert site.run() == (0, "This box is set up.\n")


def test_a_second_seed_is_not_read_unless_the_first_one_allows_it(site: Site) -> None:
    site.run()
    site.seed.write_text(SEED)
    code, output = site.run()
    assert (code, site.seed.exists()) == (0, True)
    assert "was not read" in output
    assert not (site.root / "etc/hostname").exists()
    assert site.run("--again")[0] == 0
    assert site.text("etc/hostname") == "press-2\n"


def test_a_seed_that_allows_another(site: Site) -> None:
    site.seed.write_text('later = true\n[[network]]\ninterface = "a"\n[[network]]\ninterface = "b"\n')
    site.run()
    networks = site.root / "etc/systemd/network"
    assert len(list(networks.iterdir())) == 2
    site.seed.write_text(SEED + '[[network]]\ninterface = "c"\n')
    assert site.run()[0] == 0
    assert [path.name for path in networks.iterdir()] == ["20-millwright-0.network"]
    assert "Name=c\n" in (networks / "20-millwright-0.network").read_text()
    assert site.vault("get", "mqtt/plant") == CANARY


def test_recipients_can_open_the_vault(site: Site) -> None:
    made = asyncio.run(
        site.box.run("vault", "recipients", "new", "office", "--recovery-file", str(site.box.folder / "office"))
    )[1]
    line = made.splitlines()[-1]
    site.seed.write_text(f'[recovery]\nrecipients = ["{line}"]\n')
    assert site.run()[0] == 0
    assert line in site.vault("recipients", "list")
    assert "opened" in site.vault("recover", "--recovery-file", str(site.box.folder / "office"))


def test_a_stick_that_was_pulled_too_early(site: Site) -> None:
    site.seed.write_text(SEED)
    state = site.box.folder / "state"
    state.mkdir()
    begun = {"seed": "0" * 64, "place": str(site.seed), "steps": ["files"], "later": False, "finished": False}
    (state / "first-boot.json").write_text(json.dumps(begun))
    site.seed.rename(site.box.folder / "elsewhere")
    code, output = site.run()
    assert code == 2
    assert "was applied in part, and is gone" in output
    (site.box.folder / "elsewhere").rename(site.seed)
    assert site.run()[0] == 0
    assert site.vault("get", "mqtt/plant") == CANARY


def test_a_journal_that_is_damaged(site: Site) -> None:
    site.seed.write_text(SEED)
    (site.box.folder / "state").mkdir()
    (site.box.folder / "state/first-boot.json").write_bytes(b"\0\0\0")
    assert site.run()[0] == 0
    assert site.vault("get", "mqtt/plant") == CANARY


def test_no_console_and_no_terminal(quiet_box: Quiet) -> None:
    site = Site(quiet_box)
    code, output, _ = asyncio.run(quiet_box.run("first-boot", "--root", str(site.root)))
    assert code == 0
    assert "was shown to nobody" in output
    assert "millwright vault rotate recovery" in output


def test_a_seed_that_is_not_there(site: Site) -> None:
    assert site.run("--seed", str(site.box.folder / "none"))[0] == 2


def test_a_seed_that_cannot_be_wiped_is_told_of() -> None:
    with pytest.raises(StoreError, match="holds its secrets still") as caught:
        sowing.wipe(Path("/proc/version"))  # which nobody can write or remove
    assert "destroy it" in caught.value.remedy


def test_a_seed_that_is_not_wiped_is_wiped_at_the_next_boot(site: Site) -> None:
    site.seed.write_text(SEED)
    site.run()
    journal = site.box.folder / "state/first-boot.json"
    facts = json.loads(journal.read_text())
    journal.write_text(json.dumps(facts | {"steps": facts["steps"][:-1], "finished": False}))
    for rest in (SEED.encode(), b"", b"\xff" * 300, b"\0" * 300):
        site.seed.write_bytes(rest)
        journal.write_text(json.dumps(facts | {"steps": facts["steps"][:-1], "finished": False}))
        assert site.run()[0] == 0
        assert not site.seed.exists()
    assert json.loads(journal.read_text())["finished"]
