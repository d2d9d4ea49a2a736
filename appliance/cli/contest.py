"""`millwright contest`: two models of the detector, each judging its share of the assets, side by side.

Name the second one in the configuration, and start `detect` again:

    [contest]
    model = "pump@1.3.0"
    share_percent = 50

Which assets it judges is drawn by a salted hash: the same ones after each start. It decides alone there, as soon as it
has learned them. What is found must hold at 5 % over all tests together; an asset counts as one observation. Look once,
when the time that you have set is over: whoever ends at the first difference finds one too often.
"""

import argparse
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.events.schema import Command

ANSWER_S = 60.0  # thousands of assets are dealt anew many times


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "contest",
        help="two models, each on its share of the assets, compared",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from appliance.events.schema import CommandState
    from appliance.services.words import json_text, printable

    config, _ = instance.configuration(args)
    command = instance.play(_ask(config))
    if command.state is CommandState.FAILED:
        message, _, remedy = command.reason.partition("\n  -> ")
        raise MillwrightError(printable(message), printable(remedy))
    print(json_text(command.result) if args.json else "\n".join(lines(command.result)))
    return 0


def lines(told: dict[str, Any]) -> list[str]:
    """A report, for a person."""
    from appliance.services.words import columns, printable

    pair, a, b = told["pair"], told["a"], told["b"]
    rows = [
        ("", "A", "B", "CHANCE"),
        ("model", pair["a"][:12], pair["b"][:12], ""),
        (
            "share of the assets",
            _percent(1 - pair["basis_points"] / 10_000),
            _percent(pair["basis_points"] / 10_000),
            "",
        ),
        ("assets", *map(str, told["assets"]), ""),
        ("looks", f"{a['looks']:,}", f"{b['looks']:,}", ""),
        ("alarms", f"{a['alarms']:,}", f"{b['alarms']:,}", ""),
        ("called normal, called a fault", f"{a['normal']}, {a['fault']}", f"{b['normal']}, {b['fault']}", ""),
        *(_measure(one) for one in told["measures"]),
    ]
    trouble = [printable(f"Trouble: {told['trouble']}")] if told.get("trouble") else []
    return [printable(f"B is {told['model']}"), *columns(rows), printable(f"Verdict: {told['verdict']}"), *trouble]


def _measure(one: dict[str, Any]) -> tuple[str, str, str, str]:
    chance = "too little was seen" if one["p"] is None else f"p = {one['p']:.2g} ({one['test']})"
    return one["measure"], _percent(one["a"]), _percent(one["b"]), chance


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


async def _ask(config: "Config") -> "Command":
    from appliance.cli.alarms import login
    from appliance.services import commands

    async with instance.session(config) as bus:
        return await commands.ask(bus, "detect", "contest", {}, login(), ANSWER_S)
