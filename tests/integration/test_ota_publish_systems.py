"""Releases of the operating system, from the builder's files to a repository, a stick, and what is cleared away."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ota import courier
from ota.publish import command
from ota.system import making
from ota.system import release as releases
from tests.systems import Maker, root

NAME = "millwright-x86-64"
Do = Callable[..., str]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Do:
    """The publisher's command, in a workshop that was founded."""
    monkeypatch.setenv(command.PASSPHRASE, "correct horse battery")

    def do(verb: str, *words: object, code: int = 0) -> str:
        assert command.main([verb, *map(str, words)]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    do("init", tmp_path / "workshop", "--fleet", "plant-a", "--make-keys", tmp_path / "keys")
    return do


@pytest.fixture
def released(tmp_path: Path) -> Callable[[str], Path]:
    maker = Maker()

    def make(version: str) -> Path:
        split = maker.split(tmp_path / version, version, root(len(version)))
        making.make(NAME, "x86-64", split, tmp_path / "out", level=1)
        return tmp_path / "out" / f"{NAME}-{version}.image"

    return make


def release_keys(folder: Path) -> list[object]:
    return ["--key", folder / "keys/release-1", "--key", folder / "keys/release-2"]


def parts(folder: Path) -> set[str]:
    return {path.name for path in (folder / "targets" / releases.PARTS).glob("*")}


def test_a_release_is_published_with_its_parts(do: Do, released: Callable[[str], Path], tmp_path: Path) -> None:
    file = released("1.2")
    said = do("add", tmp_path / "workshop", file, "--system", *release_keys(tmp_path))
    assert said.startswith(f"{NAME} 1.2: root ")
    assert "published: os-release" in said
    release = releases.decode(file.read_bytes())
    named = {way.sha256 for way in (*release.root.ways, *release.kernel.ways)}
    assert parts(tmp_path / "workshop/repository") == named
    assert len(list((tmp_path / "workshop/repository/targets/os").glob("*.image"))) == 2


def test_a_stick_carries_them_and_nothing_is_cleared_that_is_named(
    do: Do, released: Callable[[str], Path], tmp_path: Path
) -> None:
    do("add", tmp_path / "workshop", released("1.2"), "--system", *release_keys(tmp_path))
    kept = parts(tmp_path / "workshop/repository")
    (tmp_path / "workshop/repository/targets" / releases.PARTS / ("ab" * 32)).write_bytes(b"of a draft")
    said = do("prune", tmp_path / "workshop", "--days", "0")
    assert "ab" * 32 in said
    assert parts(tmp_path / "workshop/repository") == kept != set()
    (stick := tmp_path / "stick").mkdir()
    do("usb", tmp_path / "workshop", stick, "--key", tmp_path / "keys/courier")
    assert parts(stick / courier.FOLDER) == kept


def test_a_mended_older_release_is_not_the_newest(do: Do, released: Callable[[str], Path], tmp_path: Path) -> None:
    for version in ("1.10", "1.9.1"):
        do("add", tmp_path / "workshop", released(version), "--system", *release_keys(tmp_path))
    (newest,) = (tmp_path / "workshop/repository/targets/os").glob("*.newest.image")
    assert releases.decode(newest.read_bytes()).version == "1.10"


def test_what_is_not_whole_is_refused(do: Do, released: Callable[[str], Path], tmp_path: Path) -> None:
    file = released("1.2")
    some, other = sorted((tmp_path / "out/parts").iterdir())[:2]
    data = some.read_bytes()
    some.write_bytes(data[:-1])
    assert "is not what the release names" in do("add", tmp_path / "workshop", file, "--system", code=1)
    some.write_bytes(data)
    other.unlink()
    assert "No such file" in do("add", tmp_path / "workshop", file, "--system", code=1)
    assert "no release of a system" in do("add", tmp_path / "workshop", tmp_path / "keys/courier", "--system", code=1)
    assert parts(tmp_path / "workshop/repository") == set()


def test_a_version_has_one_content(do: Do, released: Callable[[str], Path], tmp_path: Path) -> None:
    file = released("1.2")
    do("add", tmp_path / "workshop", file, "--system", *release_keys(tmp_path))
    do("add", tmp_path / "workshop", file, "--system", *release_keys(tmp_path))
    file.write_bytes(file.read_bytes() + b"\n")
    assert "there is another" in do("add", tmp_path / "workshop", file, "--system", code=1)
