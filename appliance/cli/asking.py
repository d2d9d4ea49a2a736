"""Asks a service of the Millwright that runs, in the name of whoever sits at the terminal."""

import argparse
import getpass
import os
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.events.schema import Command

ANSWER_S = 10.0


def ask(
    args: argparse.Namespace, service: str, verb: str, asked: dict[str, Any], by: str = "", answer_s: float = ANSWER_S
) -> "Command":
    """What became of it, done or refused. `by`: in whose name, if not the login's."""
    config, _ = instance.configuration(args)
    return instance.play(_ask(config, service, verb, asked, by or login(), answer_s))


def result(
    args: argparse.Namespace, service: str, verb: str, asked: dict[str, Any], by: str = "", answer_s: float = ANSWER_S
) -> dict[str, Any]:
    """MillwrightError where it was refused."""
    return granted(ask(args, service, verb, asked, by, answer_s))


def granted(command: "Command") -> dict[str, Any]:
    """The result. MillwrightError where it was refused, with the remedy that the service named."""
    from appliance.events.schema import CommandState
    from appliance.services.words import printable

    if command.state is CommandState.FAILED:
        message, _, remedy = command.reason.partition("\n  -> ")
        raise MillwrightError(printable(message), printable(remedy))
    return command.result


def print_json(command: "Command") -> int:
    """As it ended, also where it was refused; the exit code."""
    from appliance.events.schema import CommandState
    from appliance.services.words import json_text

    failed = command.state is CommandState.FAILED
    reason = {"reason": command.reason} if failed else {}
    print(json_text({"state": command.state.value, **command.result, **reason}))
    return 1 if failed else 0


def login() -> str:
    """Who sits at the terminal; sudo does not hide them."""
    if name := os.environ.get("SUDO_USER"):
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


async def _ask(config: "Config", service: str, verb: str, asked: dict[str, Any], by: str, answer_s: float) -> "Command":
    from appliance.services import commands

    async with instance.session(config) as bus:
        return await commands.ask(bus, service, verb, asked, by, answer_s)
