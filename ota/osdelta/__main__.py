"""Differences of system images: `python -m ota.osdelta make OLD NEW DELTA`, `apply OLD DELTA NEW`, `show DELTA`.

Exit codes: 0 done; 1 something cannot be read or written; 3 the old image is another one; 4 the difference is damaged.
"""

import argparse
import json
import sys
from pathlib import Path

import msgspec

from ota.errors import DamagedError, OtaError
from ota.osdelta import applying, making
from ota.osdelta.applying import WrongBaseError
from ota.osdelta.form import DifferenceError


def main() -> int:
    args = _parsed()
    try:
        if args.verb == "make":
            head = making.make(args.files[0], args.files[1], args.files[2])
        elif args.verb == "apply":
            head = applying.apply(args.files[0], args.files[1], args.files[2])
        else:
            head = applying.head_of(args.files[0])
    except (OtaError, OSError) as error:
        print(f"ota.osdelta: {error}", file=sys.stderr)
        return _code(error)
    delta = args.files[{"make": 2, "apply": 1, "show": 0}[args.verb]]
    print(json.dumps({**msgspec.to_builtins(head), "bytes": delta.stat().st_size}))
    return 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m ota.osdelta", description=__doc__)
    parser.add_argument("verb", choices=("make", "apply", "show"))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args()
    wanted = 1 if args.verb == "show" else 3
    if len(args.files) != wanted:
        parser.error(f"'{args.verb}' takes {wanted} files")
    return args


def _code(error: Exception) -> int:
    if isinstance(error, WrongBaseError):
        return 3
    return 4 if isinstance(error, DifferenceError | DamagedError) else 1


if __name__ == "__main__":
    sys.exit(main())
