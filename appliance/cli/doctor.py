"""`millwright doctor`: looks at everything that Millwright needs, and says what to do about what is wrong.

`millwright doctor accelerators` tries every device with the detector's model: driver and firmware, how long it takes to
be ready, whether it agrees with the CPU, how fast it is.

Exit codes: 0 all is well (warnings included), 1 something does not work.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.cli.findings import Finding, Scene

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "doctor", help="look for what is wrong, with remedies", description=(__doc__ or "").partition("\n")[2].strip()
    )
    parser.add_argument("subject", nargs="?", choices=("accelerators",), help="look at these alone, and thoroughly")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.subject == "accelerators":
        from appliance.cli import accelerators

        return accelerators.run(args)
    from appliance.cli.findings import examine
    from appliance.services.words import json_text

    found = examine(_scene(args))
    failed = any(finding.status == "fail" for finding in found)
    if args.json:
        print(json_text({"ok": not failed, "findings": found}))
    elif sys.stdout.isatty():
        _show(found)
    else:
        print("\n".join(_plain(found)))
    return 1 if failed else 0


def _scene(args: argparse.Namespace) -> "Scene":
    from appliance.cli.findings import scene
    from appliance.config.document import Document
    from appliance.config.schema import Config

    try:
        return scene(*instance.configuration(args), None)
    except MillwrightError as error:
        return scene(Config(), Document("built-in defaults", ""), error)


def _show(found: "list[Finding]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for finding in found:
        detail = Text(finding.detail)
        if finding.remedy and finding.status != "ok":
            detail.append(f"\n-> {finding.remedy}", "bold")
        table.add_row(Text(finding.status, _STYLES[finding.status]), Text(finding.name), detail)
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(_verdict(found)))


def _plain(found: "list[Finding]") -> list[str]:
    lines = []
    for finding in found:
        lines.append(f"{finding.status:<5}{finding.name}: {finding.detail}")
        if finding.remedy and finding.status != "ok":
            lines.append(f"     -> {finding.remedy}")
    return [*lines, _verdict(found)]


def _verdict(found: "list[Finding]") -> str:
    count = {status: sum(finding.status == status for finding in found) for status in _STYLES}
    return f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} broken"
