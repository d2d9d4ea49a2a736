"""Where the packages of the image come from, and what another architecture wants."""

from pathlib import Path

import pytest

from tools.imaging import builder, foreign, places, sources

MODERN = """Types: deb
# a comment
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
"""
OTHERS = "Types: deb\nURIs: https://node.test/debian\nSuites: nodistro\nEnabled: no\n"
OLD = """deb [signed-by=/usr/share/keyrings/x.gpg] http://old.test/debian/ bookworm main
# deb http://commented.test/debian bookworm main
deb http://old.test/debian-security bookworm-security main
"""


def test_the_mirror_is_the_machines_own() -> None:
    assert sources.mirror([OTHERS, MODERN]) == sources.Mirror(
        "http://mirror.test/debian", "http://mirror.test/debian-security"
    )
    assert sources.mirror([OLD]).main == "http://old.test/debian/"


def test_a_machine_without_debians_sources_is_refused() -> None:
    with pytest.raises(sources.NoSourcesError):
        sources.mirror([OTHERS, "deb http://other.test/ubuntu noble main"])


def test_the_image_takes_its_release_from_there_with_security_updates() -> None:
    text = sources.mirror([MODERN]).stanzas()
    assert "URIs: http://mirror.test/debian\nSuites: trixie trixie-updates\n" in text
    assert "URIs: http://mirror.test/debian-security\nSuites: trixie-security\n" in text
    assert text.count("Signed-By:") == 2


def test_a_builder_for_another_architecture_has_its_libraries_in_place_of_its_own() -> None:
    own, other = builder.packages(places.X86), builder.packages(places.ARM)
    assert "libtss2-dev" in own
    assert "libtss2-dev" not in other
    assert {"libtss2-dev:arm64", "qemu-user", "qemu-system-arm"} <= set(other)
    assert not [name for name in own if name.endswith(":arm64")]


def test_what_lies_in_the_cache_is_apart_by_architecture(tmp_path: Path) -> None:
    own, other = places.Places(tmp_path), places.Places(tmp_path, places.ARM)
    for name in ("builder", "wheels", "application", "trials"):
        assert getattr(own, name) == tmp_path / name
        assert getattr(other, name) == tmp_path / f"{name}-arm64"
    assert own.keys == other.keys


ENTRY = """enabled
interpreter /usr/bin/qemu-aarch64
flags: {}
offset 0
magic 7f454c460201010000000000000000000200{}00
mask ffffffffffffff00fffffffffffffffffeffffff
"""


@pytest.mark.parametrize(
    ("entry", "taken"),
    [
        (ENTRY.format("POCF", "b7"), True),
        (ENTRY.format("PF", "b7"), True),
        (ENTRY.format("PO", "b7"), False),  # its interpreter is looked for in each root
        (ENTRY.format("PF", "f3"), False),  # RISC-V
        (ENTRY.format("PF", "b7").replace("enabled", "disabled"), False),
    ],
)
def test_what_starts_foreign_programs_already_is_left_to_do_it(entry: str, taken: bool) -> None:
    assert foreign.known(iter(["enabled\ninterpreter /usr/bin/python3\nflags: \nextension .py\n", entry])) is taken


def test_the_kernel_is_told_a_programs_header_and_who_runs_it() -> None:
    _, name, kind, offset, magic, mask, interpreter, flags = foreign.line(Path("/b/qemu")).decode().split(":")
    assert (name, kind, offset, interpreter, flags) == (foreign.NAME, "M", "", "/b/qemu", "PF")
    assert magic.encode().decode("unicode_escape").encode("latin-1")[18:20] == b"\xb7\x00"
    assert len(magic) == len(mask) == 20 * len("\\x00")
