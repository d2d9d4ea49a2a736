"""What an image is made of: a bill of materials as CycloneDX 1.6, with licences; and what changed between two of them.

    python -m tools.imaging.sbom make ROOT --name millwright --version 1.2 [--manifest FILE] [--epoch SECONDS]
    python -m tools.imaging.sbom diff OLD NEW [--json]

Debian packages come from dpkg's status below ROOT, or from mkosi's own manifest where the image has no status; Python
packages from the metadata of their wheels. Licences come from /usr/share/doc/*/copyright, as far as a program can read
it, and from the wheels; what cannot be read is named as it stands there. The same root gives the same bytes.
"""

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tools.imaging import licences

STATUS = "var/lib/dpkg/status"
MAX_STATUS = 64 << 20
MAX_TEXT = 1 << 20
WHEELS = ("usr/lib/python3*/site-packages", "usr/lib/python3/dist-packages", "usr/local/lib/python3*/*-packages")
WHEELS_ANYWHERE = (
    "opt/*/lib/python3*/site-packages",
    "usr/lib/*/lib/python3*/site-packages",
    "usr/lib/*/site-packages",
    "usr/lib/*/packages",  # where the image has the application's
)
_NAMESPACE = uuid.UUID("0a2f6d5e-2a7b-5c2e-9f47-6d1b3c5e7a91")


@dataclass(frozen=True, order=True)
class Component:
    kind: str  # deb or wheel
    name: str
    version: str
    architecture: str = ""
    source: str = ""  # the source package, where it is called otherwise
    licences: tuple[str, ...] = field(default=(), compare=False)

    @property
    def purl(self) -> str:
        name, version = quote(self.name, safe="+.-_"), quote(self.version, safe=".-_~")
        if self.kind == "wheel":
            return f"pkg:pypi/{name}@{version}"
        return f"pkg:deb/debian/{name}@{version}?arch={self.architecture}"


class SbomError(Exception):
    """What is wrong with a root or a bill."""


# ---- what a root holds ----------------------------------------------------------------------------------------------


def components(root: Path, manifest: Path | None = None) -> list[Component]:
    """In order. SbomError where there is neither dpkg's status nor a manifest."""
    packages = debian(root) if (root / STATUS).is_file() else from_manifest(manifest)
    found = {replaced(one, licences.of_package(root, one.name)) for one in packages}
    return sorted(found | set(wheels(root)))


def replaced(one: Component, names: Iterable[str]) -> Component:
    return Component(one.kind, one.name, one.version, one.architecture, one.source, tuple(sorted(set(names))))


def debian(root: Path) -> Iterator[Component]:
    text = _text(root / STATUS, MAX_STATUS)
    for paragraph in text.split("\n\n"):
        fields = _fields(paragraph)
        if fields.get("status", "").endswith(" installed"):
            source = fields.get("source", "").partition(" ")[0]
            yield Component("deb", fields["package"], fields["version"], fields.get("architecture", "all"), source)


def from_manifest(path: Path | None) -> Iterator[Component]:
    """mkosi's: {"packages": [{"type": "deb", "name": ..., "version": ..., "architecture": ...}, ...]}."""
    if path is None:
        raise SbomError("the root has no status of dpkg: name mkosi's manifest with --manifest")
    try:
        for one in json.loads(path.read_text("utf-8"))["packages"]:
            yield Component("deb", one["name"], one["version"], one.get("architecture", "all"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SbomError(f"{path} is no manifest of mkosi: {error}") from error


def wheels(root: Path) -> Iterator[Component]:
    seen = set()
    for pattern in (*WHEELS, *WHEELS_ANYWHERE):
        for path in sorted(root.glob(f"{pattern}/*.dist-info/METADATA")):
            facts = HeaderParser().parsestr(_text(path, MAX_TEXT))
            one = Component("wheel", _normal(facts["Name"] or ""), facts["Version"] or "")
            if one.name and one not in seen:
                seen.add(one)
                yield replaced(one, licences.of_wheel(facts))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _fields(paragraph: str) -> dict[str, str]:
    """Of a paragraph of control data, first lines only."""
    pairs = (line.partition(":") for line in paragraph.splitlines() if line[:1] not in (" ", "\t", ""))
    return {key.lower(): value.strip() for key, _, value in pairs}


def _text(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise SbomError(f"{path} has more than {limit} bytes")
    return raw.decode("utf-8", "replace")


# ---- the bill -------------------------------------------------------------------------------------------------------


def bill(found: Iterable[Component], name: str, version: str, epoch_s: int) -> dict[str, Any]:
    """CycloneDX 1.6. Its serial number follows from its content."""
    listed = [_entry(one) for one in sorted(found)]
    about = {"type": "operating-system", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    body = json.dumps([about, listed], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, body)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": about,
        },
        "components": listed,
    }


def _entry(one: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "library" if one.kind == "wheel" else "application",
        "bom-ref": one.purl,
        "name": one.name,
        "version": one.version,
        "purl": one.purl,
    }
    if one.licences:
        entry["licenses"] = [{"license": licences.entry(name)} for name in one.licences]
    if one.source:
        entry["properties"] = [{"name": "debian:source", "value": one.source}]
    return entry


def text_of(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


# ---- what changed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    added: dict[str, str]  # name: version
    removed: dict[str, str]
    changed: dict[str, tuple[str, str]]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Between two bills. SbomError where one is none."""
    before, after = _versions(old), _versions(new)
    return Changes(
        {name: after[name] for name in sorted(after.keys() - before.keys())},
        {name: before[name] for name in sorted(before.keys() - after.keys())},
        {
            name: (before[name], after[name])
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        },
    )


def _versions(document: Mapping[str, Any]) -> dict[str, str]:
    """By kind and name, as packages of Debian and of Python may be called alike."""
    try:
        found: dict[str, list[str]] = {}
        for one in document["components"]:
            found.setdefault(one["purl"].partition("@")[0].removeprefix("pkg:"), []).append(one["version"])
    except (KeyError, TypeError, AttributeError) as error:
        raise SbomError(f"this is no bill of materials: {error}") from error
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def lines(found: Changes) -> Iterator[str]:
    yield from (f"+ {name} {version}" for name, version in found.added.items())
    yield from (f"- {name} {version}" for name, version in found.removed.items())
    yield from (f"~ {name} {old} -> {new}" for name, (old, new) in found.changed.items())
    if not (found.added or found.removed or found.changed):
        yield "Nothing changed."


# ---- the command ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    args = _parsed(argv)
    try:
        print(args.run(args), end="")
    except (SbomError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tools.imaging.sbom", description="Bills of materials of images.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    make = verbs.add_parser("make", help="of a root, to standard output")
    make.add_argument("root", type=Path)
    make.add_argument("--name", default="millwright")
    make.add_argument("--version", required=True)
    make.add_argument("--manifest", type=Path, help="mkosi's, where the root has no status of dpkg")
    make.add_argument("--epoch", type=int, default=0, metavar="SECONDS", help="its time: SOURCE_DATE_EPOCH")
    make.set_defaults(run=_make)
    diff = verbs.add_parser("diff", help="what changed between two bills")
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    diff.add_argument("--json", action="store_true")
    diff.set_defaults(run=_diff)
    return parser.parse_args(argv)


def _make(args: argparse.Namespace) -> str:
    return text_of(bill(components(args.root, args.manifest), args.name, args.version, args.epoch))


def _diff(args: argparse.Namespace) -> str:
    found = changes(_read(args.old), _read(args.new))
    if args.json:
        return text_of({"added": found.added, "removed": found.removed, "changed": found.changed})
    return "\n".join(lines(found)) + "\n"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(_text(path, MAX_STATUS))
    except ValueError as error:
        raise SbomError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SbomError(f"{path} is no bill of materials")
    return document


if __name__ == "__main__":
    sys.exit(main())
