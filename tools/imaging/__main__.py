"""tools/image: makes the image, and tries it.

keys                          test keys, where there are none
build [--profile P]           the image and what an update of it is made of; `release` unless said otherwise
boot [--profile P]            a machine with it, its console in this terminal; Ctrl-X ends it
test [PYTEST ARGUMENTS]       tests/image on images that are built for it (profile `dev`); -k arm64: arm64, alone
report [--image FOLDER]       the image beside plain Debian, by Lynis, OpenSCAP, kernel-hardening-checker and the clock
powercut N                    N power cuts at random moments of an update: the machine is killed, and starts again
moments N                     N moments of a recorded update, and of its trial: what a cut leaves on the disk
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.imaging import builder, building, keys, places, releasing, report
from tools.imaging.builder import BuilderError
from tools.imaging.machine import Machine, MachineError
from tools.imaging.report_figures import UnreadError

CUTS = "MILLWRIGHT_POWER_CUTS"
MOMENTS = "MILLWRIGHT_POWER_MOMENTS"
RUN = "MILLWRIGHT_IMAGE_TESTS"


def main(argv: Sequence[str] | None = None) -> int:
    args, rest = _parser().parse_known_args(argv)
    if rest and args.command != "test":
        _parser().error(f"unknown: {' '.join(rest)}")
    try:
        return int(args.run(args, rest))
    except (BuilderError, MachineError, UnreadError) as error:
        print(f"tools/image: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/image", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("keys").set_defaults(run=_keys)
    build = commands.add_parser("build")
    build.add_argument("--version", default="", help="digits and dots; the program's unless given")
    build.set_defaults(run=_build)
    boot = commands.add_parser("boot")
    boot.add_argument("--fresh", action="store_true", help="a new disk and a new TPM, as from the factory")
    boot.set_defaults(run=_boot)
    for command in (build, boot):
        command.add_argument("--profile", choices=building.PROFILES, default="release")
        command.add_argument("--architecture", choices=places.ARCHITECTURES, default=places.X86)
    test = commands.add_parser("test")
    test.add_argument("--keep", action="store_true", help="with the images as they are, though the tree changed since")
    test.set_defaults(run=_test)
    beside = commands.add_parser("report")
    beside.add_argument("--image", type=Path, help="an image that was built (profile `dev`); else one is")
    beside.add_argument("--again", action="store_true", help="the table alone, from what was measured before")
    beside.set_defaults(run=_report)
    cut = commands.add_parser("powercut")
    cut.add_argument("times", type=int)
    cut.set_defaults(run=_powercut)
    moments = commands.add_parser("moments")
    moments.add_argument("times", type=int)
    moments.set_defaults(run=_moments)
    return parser


def _keys(_args: argparse.Namespace, _rest: list[str]) -> int:
    where = places.find()
    builder.make(where)
    print(f"image: {'made' if keys.make(where) else 'there are already'} keys in {where.keys}")
    return 0


def _build(args: argparse.Namespace, _rest: list[str]) -> int:
    where = places.find(args.architecture)
    what = building.order(args.profile, args.version)
    folder = building.build(where, what)
    releasing.finish(where, folder, what)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:9.1f} MB  {path}")
    return 0


def _boot(args: argparse.Namespace, _rest: list[str]) -> int:
    where = places.find(args.architecture)
    folder = where.output(args.profile) / building.order(args.profile).version
    machine = Machine(where, where.trials / f"boot-{args.profile}", probe=False)
    if args.fresh or not (machine.folder / machine.disk).exists():
        machine.prepare(releasing.raw_image(folder))
    with machine.running() as running:
        return running.converse()


def _test(args: argparse.Namespace, rest: list[str]) -> int:
    os.environ[RUN] = "yes"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # machines are ended with the tests
    if getattr(args, "keep", False):
        os.environ[building.KEEP] = "yes"
    return int(pytest.main([str(places.PROJECT / "tests" / "image"), "--timeout=3600", *rest]))


def _report(args: argparse.Namespace, _rest: list[str]) -> int:
    where = places.find()
    builder.make(where)
    keys.make(where)
    image = args.image or building.renew(where, building.order("dev"))
    print((report.tell if args.again else report.make)(where, image), end="")
    return 0


def _powercut(args: argparse.Namespace, rest: list[str]) -> int:
    os.environ[CUTS] = str(args.times)
    return _test(args, ["-k", "power_cut", "-s", f"--timeout={max(3600, 900 * args.times)}", *rest])


def _moments(args: argparse.Namespace, rest: list[str]) -> int:
    os.environ[MOMENTS] = str(args.times)
    return _test(args, ["-k", "no_moment or good_update", "-s", f"--timeout={max(3600, 20 * args.times)}", *rest])


if __name__ == "__main__":
    sys.exit(main())
