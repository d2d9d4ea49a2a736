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
from typing import Any

from appliance.cli import asking

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
    from appliance.services.words import json_text

    told = asking.result(args, "detect", "contest", {}, answer_s=ANSWER_S)
    print(json_text(told) if args.json else "\n".join(lines(told)))
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
