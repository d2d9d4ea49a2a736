"""Bills of materials: of roots with Debian packages and wheels, the same every time, and what changed between two."""

import json
from pathlib import Path

import pytest

from tools.imaging import licences, sbom
from tools.imaging.sbom import Component, SbomError

DEP5 = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: somebody
License: Apache-2.0

Files: debian/*
License: GPL-2+ or Expat
 Its text.
"""


def root(folder: Path, version: str = "3.5.7-1~deb13u2") -> Path:
    status = folder / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text(
        f"Package: libssl3t64\nStatus: install ok installed\nSource: openssl (1)\nVersion: {version}\n"
        "Architecture: amd64\nDescription: one\n two\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n"
        "Package: base-files\nStatus: install ok installed\nVersion: 13.8+deb13u1\nArchitecture: amd64\n"
    )
    lay(folder / "usr/share/doc/libssl3t64/copyright", DEP5)
    lay(folder / "usr/share/doc/base-files/copyright", "See /usr/share/common-licenses/GPL-2.\n")
    lay(
        folder / "opt/millwright/lib/python3.13/site-packages/msgspec-0.20.dist-info/METADATA",
        "Metadata-Version: 2.4\nName: MsgSpec\nVersion: 0.20\nLicense-Expression: BSD-3-Clause AND MIT\n\nText\n",
    )
    lay(
        folder / "usr/lib/millwright/packages/old-1.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: old_name\nVersion: 1\nClassifier: License :: OSI Approved :: MIT License\n\n",
    )
    return folder


def lay(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_a_root_holds(tmp_path: Path) -> None:
    found = {one.name: one for one in sbom.components(root(tmp_path))}
    assert set(found) == {"libssl3t64", "base-files", "msgspec", "old-name"}
    assert found["libssl3t64"] == Component("deb", "libssl3t64", "3.5.7-1~deb13u2", "amd64", "openssl")
    assert found["libssl3t64"].licences == ("Apache-2.0", "GPL-2.0-or-later", "MIT")
    assert found["base-files"].licences == ("GPL-2.0-only",)
    assert found["msgspec"].licences == ("BSD-3-Clause", "MIT")
    assert found["old-name"].licences == ("MIT",)
    assert found["base-files"].purl == "pkg:deb/debian/base-files@13.8%2Bdeb13u1?arch=amd64"


def test_the_bill_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root(tmp_path)
    words = ["make", str(tmp_path), "--version", "1.2", "--epoch", "1700000000"]
    texts = [(sbom.main(words), capsys.readouterr().out) for _ in range(2)]
    assert texts[0] == texts[1]
    document = json.loads(texts[0][1])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    ssl = next(one for one in document["components"] if one["name"] == "libssl3t64")
    assert ssl["licenses"] == [{"license": {"id": name}} for name in ("Apache-2.0", "GPL-2.0-or-later", "MIT")]
    assert len({one["bom-ref"] for one in document["components"]}) == 4


def test_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, version in (("old", "1"), ("new", "2")):
        (tmp_path / f"{name}.json").write_text(
            sbom.text_of(sbom.bill(sbom.components(root(tmp_path / name, version)), "millwright", version, 0))
        )
    gone = tmp_path / "new/usr/lib/millwright/packages/old-1.dist-info/METADATA"
    gone.unlink()
    lay(gone.with_name("METADATA"), "Name: fresh\nVersion: 3\n\n")
    made = sbom.bill(sbom.components(tmp_path / "new"), "millwright", "2", 0)
    (tmp_path / "new.json").write_text(sbom.text_of(made))
    old, new = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    assert sbom.main(["diff", old, new]) == 0
    expected = ["+ pypi/fresh 3", "- pypi/old-name 1", "~ deb/debian/libssl3t64 1 -> 2"]
    assert capsys.readouterr().out.splitlines() == expected
    assert sbom.main(["diff", "--json", old, new]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {"deb/debian/libssl3t64": ["1", "2"]}
    assert sbom.main(["diff", old, old]) == 0
    assert capsys.readouterr().out == "Nothing changed.\n"


def test_a_root_without_status_takes_the_builders_manifest(tmp_path: Path) -> None:
    with pytest.raises(SbomError, match="--manifest"):
        sbom.components(tmp_path)
    manifest = tmp_path / "manifest"
    manifest.write_text('{"packages": [{"type": "deb", "name": "a", "version": "1", "architecture": "amd64"}]}')
    assert sbom.components(tmp_path, manifest) == [Component("deb", "a", "1", "amd64")]
    assert sbom.components(tmp_path, manifest)[0].licences == (licences.UNKNOWN,)
    manifest.write_text('{"packages": [3]}')
    with pytest.raises(SbomError, match="no manifest"):
        sbom.components(tmp_path, manifest)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"components": [{}]}', "\0"])
def test_files_that_are_no_bills(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bill").write_text(text)
    assert sbom.main(["diff", str(tmp_path / "bill"), str(tmp_path / "bill")]) == 1
    assert "sbom: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-3+ with Bison exception", "GPL-3.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("Expat", "MIT"),
        ("Apache-2.0", "Apache-2.0"),
        ("something of  its own", "something of its own"),
    ],
)
def test_names_of_licences(name: str, expected: str) -> None:
    assert licences.spdx(name) == expected
    assert ("id" in licences.entry(expected)) == (" " not in expected)


def test_documentation_that_is_another_packages(tmp_path: Path) -> None:
    root(tmp_path)
    (tmp_path / "usr/share/doc/libssl-dev").symlink_to("libssl3t64")
    assert set(licences.of_package(tmp_path, "libssl-dev")) == {"Apache-2.0", "GPL-2.0-or-later", "MIT"}
