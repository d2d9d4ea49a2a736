"""Where the packages of the image come from."""

import pytest

from tools.imaging import sources

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
