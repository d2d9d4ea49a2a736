"""The image's package sources: those of the machine that builds, for the release of the image. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

RELEASE = "trixie"
COMPONENTS = "main non-free-firmware"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ONE_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s")


class NoSourcesError(Exception):
    """This machine has no Debian package sources to take from."""


@dataclass(frozen=True)
class Mirror:
    """Where Debian is, and where its security updates are."""

    main: str
    security: str

    def stanzas(self) -> str:
        """A file for sources.list.d, in deb822's format."""
        return "\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {COMPONENTS}\nSigned-By: {KEYRING}\n"
            for uri, suites in (
                (self.main, f"{RELEASE} {RELEASE}-updates"),
                (self.security, f"{RELEASE}-security"),
            )
        )


def mirror(files: Iterable[str]) -> Mirror:
    """What the texts of sources.list and sources.list.d say. NoSourcesError."""
    found = [entry for text in files for entry in (*_deb822(text), *_one_line(text))]
    security = [uri for uri, suites in found if any(suite.endswith("-security") for suite in suites.split())]
    main = [uri for uri, suites in found if any(re.fullmatch(r"[a-z]+", suite) for suite in suites.split())]
    debian = [uri for uri in main if uri.rstrip("/").endswith("/debian")]
    if not debian or not security:
        raise NoSourcesError("apt's sources on this machine name no Debian mirror with its security updates")
    return Mirror(debian[0], security[0])


def _deb822(text: str) -> Iterable[tuple[str, str]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes").lower() != "no":
            for uri in fields.get("URIs", "").split():
                yield uri, fields.get("Suites", "")


def _one_line(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        if match := _ONE_LINE.match(line.strip()):
            yield match["uri"], match["suite"]
