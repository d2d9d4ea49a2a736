"""python -m ota.delta make OLD NEW PATCH | apply OLD PATCH NEW | show PATCH

OLD and NEW are files, or folders with all the files of a model; an OpenVINO `.bin` finds its `.xml` beside it.
Exit codes: 0 done; 1 something is in the way or missing; 2 wrong usage; 3 OLD is not what the patch was made for;
4 the patch is damaged or not allowed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ota.delta.errors import DeltaError, MismatchError, PatchError


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except DeltaError as error:
        print(f"ota.delta: {error}", file=sys.stderr)
        return {MismatchError: 3, PatchError: 4}.get(type(error), 1)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("ota.delta: interrupted; `apply` goes on here when it is called again", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ota.delta", description="The difference of two model versions.")
    verbs = parser.add_subparsers(required=True, metavar="make | apply | show")
    make = verbs.add_parser("make", help="write the difference of two versions")
    make.add_argument("old", type=Path, metavar="OLD")
    make.add_argument("new", type=Path, metavar="NEW")
    make.add_argument("patch", type=Path, metavar="PATCH")
    make.add_argument("--factors", type=Path, metavar="FILE", help="LoRA factors, as safetensors, that NEW has merged")
    make.add_argument("--no-tools", dest="tools", action="store_false", help="do not ask bsdiff and HDiffPatch")
    make.set_defaults(run=_make)
    apply = verbs.add_parser("apply", help="make the new version; again after an interruption, to go on")
    apply.add_argument("old", type=Path, metavar="OLD")
    apply.add_argument("patch", type=Path, metavar="PATCH")
    apply.add_argument("new", type=Path, metavar="NEW")
    apply.set_defaults(run=_apply)
    show = verbs.add_parser("show", help="say what a patch does and where its bytes go")
    show.add_argument("patch", type=Path, metavar="PATCH")
    show.set_defaults(run=_show)
    return parser


def _make(options: argparse.Namespace) -> None:
    from ota.delta import adapters, making

    began = time.monotonic()
    factors = adapters.read(options.factors) if options.factors else None
    settings = making.Settings(tools=options.tools, factors=factors)
    size = making.make(options.old, options.new, options.patch, settings, lambda line: print(f"  {line}", flush=True))
    whole = sum(path.stat().st_size for path in _files(options.new))
    share = f", {size / whole:.1%} of {whole} bytes" if whole else ""
    print(f"{options.patch}: {size} bytes{share}, in {time.monotonic() - began:.1f} s")


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _apply(options: argparse.Namespace) -> None:
    from ota.delta import applying

    bar = _Bar()
    outcome = applying.apply(options.old, options.patch, options.new, bar.show)
    bar.end()
    how = "was there already" if outcome.was_there else f"{outcome.size} bytes in {bar.seconds:.1f} s"
    if outcome.resumed_at:
        how += f", {outcome.resumed_at} of them before an interruption"
    print(f"{options.new}: {how}")


class _Bar:
    """Progress in one line that moves, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = 0.0
        self._first: int | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if not sys.stderr.isatty() or (now - self._shown < 0.1 and done < total):
            return
        self._shown = now
        rate = (done - self._first) / max(self.seconds, 1e-3)
        left = f"{(total - done) / rate:.0f} s left" if rate else ""
        share = done / total if total else 1.0
        bar = "#" * int(30 * share)
        sys.stderr.write(f"\r\033[K{bar:<30} {share:4.0%}  {rate / 1e6:.1f} MB/s  {left}")
        sys.stderr.flush()

    def end(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")


def _show(options: argparse.Namespace) -> None:
    from ota.delta import showing

    for line in showing.lines(options.patch):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
