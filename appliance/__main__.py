"""The command `millwright`: finds the command that is asked for, runs it, and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no Millwright answers, 5 the vault is missing,
does not open or refuses, 130 interrupted; a command that has more (`alarms list`) says so in its --help.
"""

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance import __version__, cli, plugins
from appliance.errors import MillwrightError

INTERRUPTED = 130
BROKEN_PIPE = 141  # as a shell counts SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    os.umask(os.umask(0o077) | 0o022)  # what we make is never for others to change, however we were started
    if argv is None:
        _write_whole()
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        code: int = args.run(args)
        sys.stdout.flush()
    except MillwrightError as error:
        print(f"millwright: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, EOFError):  # the latter: whoever was asked has hung up
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter's last flush must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _write_whole() -> None:
    """Where Python was told not to buffer, one long write that is cut short, as a pipe's may be, loses its rest."""
    out = sys.stdout
    if isinstance(raw := getattr(out, "buffer", None), io.RawIOBase):
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), out.encoding, out.errors, line_buffering=True)


def commands() -> list[str]:
    """The files of `appliance/cli` that are commands, with a dash where a file's name has an underscore."""
    return [name.replace("_", "-") for name in plugins.names("appliance.cli") if name not in cli.SHARED]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    everywhere = _global_options()
    namespace, rest = everywhere.parse_known_args(argv)
    parser = argparse.ArgumentParser(
        "millwright",
        description="Judges the messages of sensors on the box, and says what is wrong.",
        epilog="Start it with 'millwright run'; see it with 'millwright watch'.",
        parents=[everywhere],
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _asked(parser, rest):
        importlib.import_module(f"appliance.cli.{name.replace('-', '_')}").register(subparsers)
    return parser.parse_args(rest, namespace)


def _global_options() -> argparse.ArgumentParser:
    """Options that may stand before or after the command."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--config", type=Path, metavar="PATH", help="the configuration, a TOML file")
    options.add_argument("--version", action="version", version=f"millwright {__version__}")
    return options


def _asked(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """The one command that is asked for, or all of them for the help: importing costs the time of a start."""
    known = commands()
    asked = next((word for word in rest if not word.startswith("-")), None)
    if asked is not None and asked not in known:
        near = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        parser.error(f"'{asked}' is not a command; {hint}")
    return [asked] if asked else known


if __name__ == "__main__":
    sys.exit(main())
