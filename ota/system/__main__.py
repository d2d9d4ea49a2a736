"""The files of a release: `python -m ota.system make NAME ARCHITECTURE OUT ROOT TREE KERNEL [--old ROOT TREE KERNEL]`

ROOT, TREE and KERNEL are the split parts of one image; the names of ROOT and TREE are those that the box will use. What
it prints says what to add to a repository: see README.md.
"""

import argparse
import sys
from pathlib import Path

from ota.errors import OtaError
from ota.system import making
from ota.system.making import Split


def main() -> int:
    parser = argparse.ArgumentParser("python -m ota.system", description=__doc__)
    parser.add_argument("verb", choices=("make",))
    parser.add_argument("name")
    parser.add_argument("architecture")
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs=3, type=Path, metavar="PART", help="ROOT TREE KERNEL")
    parser.add_argument("--old", nargs=3, type=Path, action="append", default=[], metavar=("ROOT", "TREE", "KERNEL"))
    args = parser.parse_args()
    try:
        olds = tuple(Split(*one) for one in args.old)
        release = making.make(args.name, args.architecture, Split(*args.parts), args.out, olds)
    except (OtaError, OSError) as error:
        print(f"ota.system: {error}", file=sys.stderr)
        return 1
    for part in (release.root, release.kernel):
        for way in part.ways:
            print(f"{part.file}: {way.form}, {way.length:,} bytes, {way.place}")
    print(f"sign {args.out / f'{release.name}-{release.version}.image'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
