"""Licences of packages: what Debian's copyright files and the metadata of wheels say, as SPDX where that is certain."""

import re
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

MAX_TEXT = 4 << 20
UNKNOWN = "unknown"

_SPDX = {
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "artistic-2.0": "Artistic-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "bsl-1": "BSL-1.0",
    "bsl-1.0": "BSL-1.0",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "expat": "MIT",
    "mit": "MIT",
    "mit license": "MIT",
    "isc": "ISC",
    "mpl-2.0": "MPL-2.0",
    "mpl-1.1": "MPL-1.1",
    "openssl": "OpenSSL",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "zlib": "Zlib",
    "0bsd": "0BSD",
    "unlicense": "Unlicense",
    "epl-2.0": "EPL-2.0",
    "edl-1.0": "BSD-3-Clause",
    "curl": "curl",
    "public-domain": "public domain",
    "bzip2-1.0.6": "bzip2-1.0.6",
    "unicode": "Unicode-DFS-2016",
    "x11": "X11",
}
_FAMILIES = {"gpl": "GPL", "lgpl": "LGPL", "agpl": "AGPL", "gfdl": "GFDL", "fdl": "GFDL"}
_FAMILY = re.compile(r"(gpl|lgpl|agpl|gfdl|fdl)[- ]?v?([1-3])(?:\.([0-3]))?(\+|-or-later|-only)?")
_NOT_SPDX = {"public domain", UNKNOWN}
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]+[A-Za-z0-9+])")
_SEPARATOR = re.compile(r"\s+(?:or|and|and/or)\s+|\s*,\s*(?:and\s+|or\s+)?|\s*\|\s*|\s*/\s*", re.IGNORECASE)
_EXCEPTION = re.compile(r"\s+with\s+.*$", re.IGNORECASE)
_TOO_LONG = 64  # characters: that is no name of a licence but its text


def spdx(name: str) -> str:
    """The identifier for a licence's name in Debian or on a wheel; the name itself where there is none."""
    plain = " ".join(name.split())
    bare = _EXCEPTION.sub("", plain).strip("()").lower()
    if found := _FAMILY.fullmatch(bare):
        family, major, minor, later = found.groups()
        tail = "or-later" if later in ("+", "-or-later") else "only"
        return f"{_FAMILIES[family]}-{major}.{minor or '0'}-{tail}"
    return _SPDX.get(bare, plain)


def entry(name: str) -> dict[str, str]:
    """As CycloneDX writes a licence."""
    known = set(_SPDX.values()) - _NOT_SPDX
    is_known = name in known or bool(re.fullmatch(r"(A|L)?GPL-[123]\.[0-3]-(only|or-later)", name))
    return {"id": name} if is_known else {"name": name}


def of_package(root: Path, name: str) -> Iterator[str]:
    """Of a Debian package, from its copyright file; its documentation may be a link to another package's."""
    path = root / "usr/share/doc" / name / "copyright"
    try:
        target = path.parent.readlink() if path.parent.is_symlink() else None
        path = path.parent.parent / target.name / "copyright" if target else path  # never out of the root
        text = path.read_bytes()[:MAX_TEXT].decode("utf-8", "replace")
    except OSError:
        yield UNKNOWN
        return
    found = [spdx(one) for one in _named(text)]
    yield from found or [UNKNOWN]


def _named(text: str) -> Iterator[str]:
    """What a copyright file names: `License:` of the machine-readable form, else links to the common licences."""
    if re.search(r"^Format:", text[:2000], re.MULTILINE):
        for line in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE):
            yield from (one.strip("() ") for one in _SEPARATOR.split(_EXCEPTION.sub("", line)) if one.strip("() "))
    else:
        yield from (one.rstrip(".") for one in _COMMON.findall(text))


def of_wheel(facts: "Message[str, str]") -> Iterator[str]:
    """License-Expression, else the classifiers, else a short License."""
    if expression := facts["License-Expression"]:
        yield from (spdx(one.strip("() ")) for one in re.split(r"\s+(?:AND|OR)\s+", str(expression)))
        return
    classified = [
        str(one).rpartition("::")[2].strip() for one in facts.get_all("Classifier", []) if "License ::" in str(one)
    ]
    classified = [one for one in classified if one != "OSI Approved"]
    text = str(facts["License"] or "").strip()
    short = [text] if text and len(text) <= _TOO_LONG and "\n" not in text else []
    yield from [spdx(one) for one in classified or short] or [UNKNOWN]
