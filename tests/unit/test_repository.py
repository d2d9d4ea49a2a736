"""The repository's own rules: what may stand in a tracked file, and that the papers tell the truth."""

import os
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from appliance.__main__ import commands, main

ROOT = Path(__file__).resolve().parents[2]
LOCKED = sorted((ROOT / "tools" / "requirements").glob("*.txt"))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

# Spelled so that this file does not contain what it looks for.
REGISTRY = re.compile(r"\b(pypi|pythonhosted|npmjs|crates|docker|quay|ghcr|anaconda)\.(org|com|io|dev)\b")
INDEX_OPTION = re.compile(r"--(extra-)?index-url[ =]|--find-links[ =]|--trusted-host[ =]")
MACHINE_PATH = re.compile(r"(?<![\w.$}*-])/(home|Users|root|work|mnt)/\w")
PATH_IN_PAPERS = re.compile(r"`((?:appliance|hardware|ota|image|tools|tests|\.ci)/[\w./-]*)`")


def tracked() -> list[Path]:
    # The folder may belong to another user, as in a container: that is no reason not to look.
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def papers() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(path: Path) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package of a requirements file."""
    found = {}
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.lstrip().startswith("#"):
            name, _, rest = entry.partition("==")
            found[name.strip()] = (rest.split()[0], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
    return found


@pytest.mark.parametrize("check", ["style", "format", "types", "layers"])
def test_lint(check: str) -> None:
    done = subprocess.run([ROOT / "tools" / "lint", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("pattern", [REGISTRY, INDEX_OPTION, MACHINE_PATH], ids=["registry", "index", "path"])
def test_no_file_names_a_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_this_clone_is_named_nowhere() -> None:
    found = [path for path in tracked() if str(ROOT) + "/" in path.read_text(errors="replace")]
    assert found == []


def test_every_top_level_folder_has_a_readme() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    missing = [
        name for name in sorted(folders) if not name.startswith(".") and not (ROOT / name / "README.md").is_file()
    ]
    assert missing == []


def test_papers_name_files_that_exist() -> None:
    missing = []
    for paper in papers():
        for name in PATH_IN_PAPERS.findall(paper.read_text()):
            if not (ROOT / name).exists():
                missing.append(f"{paper.relative_to(ROOT)}: {name}")
    assert missing == []


def test_papers_name_commands_that_exist() -> None:
    named = {
        name for paper in papers() for name in re.findall(r"[`/]millwright ([a-z]+(?:-[a-z]+)*)", paper.read_text())
    }
    assert {"run", "watch", "alarms"} <= named
    assert named - set(commands()) == set()


def test_the_configurations_in_the_papers_are_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (recordings := tmp_path / "recordings").mkdir()
    (recordings / "pump1.csv").write_text("at,temperature\n2026-11-21T08:00:00Z,61.2\n")
    examples = [text for paper in papers() for text in re.findall(r"```toml\n(.*?)```", paper.read_text(), re.DOTALL)]
    assert examples
    for text in examples:
        (file := tmp_path / "millwright.toml").write_text(text)
        assert main(["config", "check", str(file)]) == 0, text + capsys.readouterr().err


def test_there_is_one_requirements_file_an_extra() -> None:
    assert EXTRAS
    assert {path.stem for path in LOCKED} == {"run", *EXTRAS}


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.stem)
def test_requirements_are_exact_and_have_hashes(path: Path) -> None:
    packages = locked(path)
    assert packages
    assert [name for name, (version, hashes) in packages.items() if not version or not hashes] == []


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.stem)
def test_requirements_meet_what_the_project_declares(path: Path) -> None:
    declared = project()["project"]
    wanted = [*declared["dependencies"], *declared["optional-dependencies"].get(path.stem, [])]
    packages = locked(path)
    unmet = [
        text
        for text in wanted
        if (need := Requirement(text)).name not in packages
        or not need.specifier.contains(packages[need.name][0], prereleases=True)
    ]
    assert unmet == [], "run tools/lock"


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_extras_leave_the_versions_of_the_product_alone(extra: str) -> None:
    run, wider = (
        locked(ROOT / "tools" / "requirements" / "run.txt"),
        locked(ROOT / "tools" / "requirements" / f"{extra}.txt"),
    )
    assert {name: wider.get(name) for name in run} == run


def test_ci_runs_the_developers_own_command() -> None:
    assert "tools/test" in (ROOT / ".ci" / "run").read_text()


def test_commands_are_executable_and_parse() -> None:
    scripts = [path for path in tracked() if path.read_bytes().startswith(b"#!/bin/sh")]
    assert {"setup", "run", "test", "lint", "bench", "lock"} <= {path.name for path in scripts}
    for path in scripts:
        assert os.access(path, os.X_OK), path
        parsed = subprocess.run(["sh", "-n", path], capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr


def test_setup_names_the_sets_it_knows() -> None:
    done = subprocess.run([ROOT / "tools" / "setup", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("run", *EXTRAS))


def test_the_command_that_pyproject_names_exists() -> None:
    module, _, name = project()["project"]["scripts"]["millwright"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()


def test_bounds_on_waiting_hold_on_every_python() -> None:
    """`appliance.runtime.patience` says what is wrong with the library's own."""
    # The session's waiting is in a task of its own, or before there is anything to clean up.
    exempt = ROOT / "appliance" / "bus" / "mqtt.py"
    library = re.compile(r"\basyncio\.(?:timeout|wait_for)\(")
    sources = [path for path in tracked() if path.is_relative_to(ROOT / "appliance") and path.suffix == ".py"]
    assert exempt in sources
    assert [path.name for path in sources if path != exempt and library.search(path.read_text())] == []
