"""Pure parts of the image: where its packages come from, and what PCR 11 will be."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware import measured_boot
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


def kernel_image(sections: dict[str, bytes]) -> bytes:
    """A program for UEFI firmware, as far as its table of sections goes."""
    offset, table, body = 1024, b"", b""
    for name, content in sections.items():
        stored = content + bytes(-len(content) % 16)
        table += struct.pack("<8sIIII16x", name.encode(), len(content), 0, len(stored), offset + len(body))
        body += stored
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64)
    head += struct.pack("<4s2xH12xH2x", b"PE\0\0", len(sections), 16) + bytes(16)
    return (head + table).ljust(offset, b"\0") + body


def extended(events: list[bytes]) -> bytes:
    value = bytes(32)
    for event in events:
        value = hashlib.sha256(value + hashlib.sha256(event).digest()).digest()
    return value


def test_the_register_follows_from_sections_in_their_own_order_and_phases() -> None:
    image = kernel_image({".text": b"stub", ".cmdline": b"ro", ".linux": b"kernel", ".pcrsig": b"{}"})
    wanted = extended([b".linux\0", b"kernel", b".cmdline\0", b"ro", b"enter-initrd", b"leave-initrd"])
    assert measured_boot.register(image, ("enter-initrd", "leave-initrd")) == wanted


def test_a_signature_changes_nothing_and_a_word_of_the_command_line_does() -> None:
    one = kernel_image({".linux": b"kernel", ".cmdline": b"ro"})
    signed = kernel_image({".linux": b"kernel", ".cmdline": b"ro", ".pcrsig": b"signed"})
    other = kernel_image({".linux": b"kernel", ".cmdline": b"ro init=/bin/sh"})
    assert measured_boot.register(one) == measured_boot.register(signed)
    assert measured_boot.register(one) != measured_boot.register(other)


@pytest.mark.parametrize("sections", [{".text": b"no kernel"}, {".linux": b"kernel", ".profile": b"two of them"}])
def test_what_cannot_be_foretold_is_refused(sections: dict[str, bytes]) -> None:
    with pytest.raises(measured_boot.ImageError):
        measured_boot.register(kernel_image(sections))


@given(st.binary(max_size=400), st.integers(0, 200))
def test_any_bytes_are_refused_in_words(data: bytes, cut: int) -> None:
    whole = kernel_image({".linux": b"kernel"})
    for candidate in (data, b"MZ" + data, whole[:cut]):
        with pytest.raises(measured_boot.ImageError):
            measured_boot.register(candidate)
