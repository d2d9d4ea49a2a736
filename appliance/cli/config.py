"""`millwright config`: check a configuration, show the one in effect, print the reference of all settings."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import BusError, ConfigError, ConnectorError, InferenceError

if TYPE_CHECKING:
    from appliance.config.document import Document
    from appliance.config.schema import Config

BROKEN = 255
SOCKET_PATH = 107  # bytes: sun_path of unix(7), less its closing zero


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("config", help="check, show and explain the configuration", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = verbs.add_parser("check", help="look for mistakes", description="Looks for mistakes. Exit code 2: found.")
    check.add_argument("path", nargs="?", type=Path, metavar="PATH", help="the file (default: the one in effect)")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)
    show = verbs.add_parser("show", help="print all settings in effect as TOML")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=run_show)
    runs = verbs.add_parser(
        "runs",
        help="whether a service is to run",
        description="Whether a service is to run, as systemd's ExecCondition= asks. Exit codes: 0 it is, 1 it is not, "
        "255 the configuration is wrong.",
    )
    runs.add_argument("service", metavar="SERVICE")
    runs.set_defaults(run=run_runs)
    reference = verbs.add_parser("reference", help="print what every setting means, as Markdown")
    reference.set_defaults(run=run_reference)


def run_check(args: argparse.Namespace) -> int:
    args.config = args.path or args.config
    try:
        config, document = instance.configuration(args)
        found = problems(config, document)
        source = document.source
    except ConfigError as error:
        found, source = [error], str(args.config or "")
    if args.json:
        listed = [{"message": problem.message, "remedy": problem.remedy} for problem in found]
        print(json.dumps({"ok": not found, "source": source, "problems": listed}, indent=2))
        return ConfigError.exit_code if found else 0
    for problem in found[:-1]:
        print(problem)
    if found:
        raise found[-1]
    names = ", ".join(config.connectors) or "none: readings come from publishers on the bus"
    print(f"{source}: in order. Connectors: {names}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    config, document = instance.configuration(args)
    settings = effective(config, document)
    if args.json:
        print(json.dumps(settings, indent=2, ensure_ascii=False))
    else:
        print(f"# {document.origin}, with all defaults\n\n" + toml(settings), end="")
    return 0


def run_runs(args: argparse.Namespace) -> int:
    from appliance import assembly
    from appliance.config.load import load

    try:
        config, _ = load(args.config)
        assembly.choose((args.service,), config)  # its name
    except ConfigError as error:
        print(f"millwright: {error}", file=sys.stderr)
        return BROKEN  # any less would skip the unit in silence
    return 0 if args.service in assembly.choose((), config) else 1


def run_reference(_: argparse.Namespace) -> int:
    print(reference(), end="")
    return 0


def reference() -> str:
    from appliance import channels, plugins
    from appliance.config.reference import markdown
    from appliance.connectors import declared, dialects

    package = "appliance.vault.backends"
    backends = {name: plugins.load(package, name).Settings for name in plugins.names(package)}
    found = {"connectors": declared(), "dialects": dialects.declared(), "vault": backends}
    found["forward"] = channels.declared()
    return markdown(found).rstrip() + "\n"


def effective(config: "Config", document: "Document") -> dict[str, Any]:
    """Every setting with its value, as plain values; the connectors with their own defaults."""
    import msgspec

    from appliance.channels import configured as destinations
    from appliance.connectors import configured

    connectors: dict[str, Any] = {}
    for name, settings in configured(document, config.connectors):
        plain = msgspec.to_builtins(settings, enc_hook=str)
        if isinstance(config.connectors[name], list):
            connectors.setdefault(name, []).append(plain)
        else:
            connectors[name] = plain
    forward: dict[str, Any] = {}
    for one in destinations(document, config.forward):
        plain = msgspec.to_builtins(one.settings, enc_hook=str)
        if isinstance(config.forward[one.kind], list):
            forward.setdefault(one.kind, []).append(plain)
        else:
            forward[one.kind] = plain
    bare = msgspec.structs.replace(config, base="", connectors=connectors, forward=forward)
    plain = msgspec.to_builtins(bare, enc_hook=str)
    assert isinstance(plain, dict)
    return plain


def toml(tables: dict[str, Any]) -> str:
    """TOML 1.0 of nested tables of plain values."""
    return "\n".join(_tables(tables, ()))


def _tables(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict) or _is_tables(value)}
    plain = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in inner and value is not None]
    if path and (plain or not inner):
        yield "\n".join([f"[{'.'.join(map(_key, path))}]", *plain, ""])
    elif plain:
        yield "\n".join([*plain, ""])
    for key, value in inner.items():
        for one in value if isinstance(value, list) else ():
            lines = (f"{_key(name)} = {_value(item)}" for name, item in one.items() if item is not None)
            yield "\n".join([f"[[{'.'.join(map(_key, (*path, key)))}]]", *lines, ""])
        if isinstance(value, dict):
            yield from _tables(value, (*path, key))


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _key(key: str) -> str:
    bare = key and key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = (f"{_key(key)} = {_value(one)}" for key, one in value.items() if one is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def problems(config: "Config", document: "Document") -> list[ConfigError]:
    """What is wrong beyond the types of values, each naming its line and its remedy."""
    checks: tuple[Callable[[Config, Document], Iterator[ConfigError]], ...] = (
        _connectors,
        _dialects,
        _folders,
        _socket,
        _bus_url,
        _certificates,
        _destinations,
        _backend,
        _limits,
        _vault,
        _updates,
    )
    return [problem for check in checks for problem in check(config, document)]


def _connectors(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance import assembly, connecting
    from appliance.connectors import configured, rivals
    from appliance.connectors.port import Connector, Foreseeable

    means = assembly.means(config, document, lambda _: None)
    sources: list[tuple[str, Connector]] = []
    places: list[tuple[str, ...]] = []  # of the sources, in the document
    for name, table in config.connectors.items():
        place: tuple[str, ...] = ("connectors", name)
        try:
            for index, (_, settings) in enumerate(configured(document, {name: table})):
                place = ("connectors", name, str(index)) if isinstance(table, list) else ("connectors", name)
                sources.append((name, connecting.connector(name, settings, means)))
                places.append(place)
                if isinstance(sources[-1][1], Foreseeable):
                    sources[-1][1].assets()
        except (ConfigError, ConnectorError) as error:
            here = document.error(place, error.message, error.remedy)
            yield error if isinstance(error, ConfigError) and document.has_placed(error) else here
    for index, rival in rivals(sources):
        yield document.error(places[index], rival.message, rival.remedy)


def _dialects(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance.connectors import dialects

    try:
        dialects.spoken(document, config.devices.dialects, config.dialects)
    except ConfigError as error:
        is_placed = document.has_placed(error)
        yield error if is_placed else document.error(("dialects",), error.message, error.remedy)


def _destinations(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance import assembly, forwarding
    from appliance.channels import configured

    told = forwarding.tools(assembly.reveal(config))
    try:
        for one in configured(document, config.forward):
            forwarding.channel(one, document, told)
    except ConfigError as error:
        yield error


def _folders(config: "Config", document: "Document") -> Iterator[ConfigError]:
    for key, folder in (("state", config.paths.state), ("run", config.paths.run)):
        if trouble := folder_trouble(folder):
            yield document.error(("paths", key), *trouble)


def folder_trouble(folder: Path) -> tuple[str, str] | None:
    """Why no file can be made in a folder that is there or has to be made, and the remedy."""
    path = folder.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        return f"{existing} is a file, not a folder", "Name another folder."
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written", f"Name another folder, or give user {os.geteuid()} the right to write."
    return None


def _socket(config: "Config", document: "Document") -> Iterator[ConfigError]:
    if config.bus.url:
        return
    path = os.fsencode(instance.bus_url(config).removeprefix("unix:"))
    if len(path) > SOCKET_PATH:
        problem = f"the broker's socket would have a path of {len(path)} bytes; the system allows {SOCKET_PATH}"
        yield document.error(("paths", "run"), problem, "Name a folder with a shorter path.")


def _bus_url(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance.bus import address

    url, here = config.bus.url, ("bus", "url")
    if not url:
        return
    try:
        broker = address.parse(url)
    except BusError as error:
        yield document.error(here, error.message, error.remedy)
        return
    if broker.scheme == "mqtts" and not config.bus.ca_file:
        yield document.error(here, "mqtts needs to know whom to trust", "Name the certificates in bus.ca_file.")
    elif broker.scheme == "unix" and len(os.fsencode(broker.host)) > SOCKET_PATH:
        yield document.error(here, f"a socket's path has {SOCKET_PATH} bytes at most", "Use a shorter path.")


def _certificates(config: "Config", document: "Document") -> Iterator[ConfigError]:
    named = {key: getattr(config.bus, key) for key in ("ca_file", "cert_file", "key_file")}
    for key, path in named.items():
        if path and not os.access(path, os.R_OK):
            yield document.error(("bus", key), f"{path} cannot be read", "Name a PEM file that this user can read.")
    if bool(named["cert_file"]) != bool(named["key_file"]):
        missing = "key_file" if named["cert_file"] else "cert_file"
        yield document.error(("bus",), "cert_file and key_file go together", f"Set bus.{missing} too.")


def _limits(config: "Config", document: "Document") -> Iterator[ConfigError]:
    for index, limit in enumerate(config.limits):
        here = ("limits", str(index))
        if limit.min is None and limit.max is None:
            yield document.error(here, "neither min nor max is set", "Set at least one of them.")
        elif limit.min is not None and limit.max is not None and limit.min >= limit.max:
            yield document.error(here, f"min {limit.min:g} is not below max {limit.max:g}", "Exchange them.")


def _vault(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance import assembly, binding
    from appliance.vault import rules

    def look_at_rules() -> None:
        if config.vault.policy:
            rules.read(Path(config.vault.policy), os.geteuid())

    checks: tuple[Callable[[], object], ...] = (
        lambda: binding.Box(config, document),
        lambda: assembly.check_secrets(config, document, ()),
        look_at_rules,
    )
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield error


def _backend(config: "Config", document: "Document") -> Iterator[ConfigError]:
    from appliance import computing, plugins

    known = plugins.names("appliance.inference.backends")
    if config.detect.backend not in known:
        problem = f"'{config.detect.backend}' is not a backend"
        yield document.error(("detect", "backend"), problem, f"There are: {', '.join(known)}.")
    if "/" in config.detect.model and not Path(config.detect.model).is_dir():
        yield document.error(("detect", "model"), f"{config.detect.model} is not a folder", "Name a bundle's folder.")
        return
    try:
        computing.detector_folder(config)
    except InferenceError as error:
        yield document.error(("detect", "model"), error.message, error.remedy)


def _updates(config: "Config", document: "Document") -> Iterator[ConfigError]:
    if config.update.sources:
        from appliance import updating

        yield from updating.problems(config, document)
