#!/usr/bin/env python3
"""Our client behind the command line that the public TUF conformance suite speaks. README.md says how to run it.

The suite tests the rules of TUF with repositories of its own, so our rules about roles and paths are off here; the
clock, the fetching and the keeping of metadata are the ones a box has.
"""

import argparse
import filecmp
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ota import fetch  # noqa: E402 - the suite starts this file from anywhere
from ota.errors import OtaError  # noqa: E402
from ota.sources import Web  # noqa: E402
from ota.times import StoredTimes  # noqa: E402
from ota.trust import Rules, Trust, View  # noqa: E402


def main() -> int:
    options = _options()
    known: Path = options.metadata_dir
    if options.verb == "init":
        shutil.copyfile(options.root, known / "root.json")
        return 0
    try:
        times = StoredTimes(known / "floor", build_s=0.0)
        trust = Trust(known, (known / "root.json").read_bytes(), times, Rules(thresholds={}, rooms=False))
        with trust.view(Web(options.metadata_url)) as view:
            for name in options.target_name if options.verb == "download" else ():
                _download(view, name, Web(options.target_base_url), options.target_dir)
    except OtaError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _download(view: View, name: str, source: Web, folder: Path) -> None:
    target = view.find(name)
    if target is None:
        raise OtaError(f"there is no {name}")
    staging = folder.parent / "staging"
    ready = fetch.download(source, target.place, target.wanted, staging)
    given = folder / quote(name, safe="")
    if not given.exists() or not filecmp.cmp(ready, given, shallow=False):
        shutil.copyfile(ready, given)  # what is staged stays: asked for again, it is not fetched


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("init").add_argument("root", type=Path)
    verbs.add_parser("refresh")
    verbs.add_parser("download")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
