"""`millwright models`: the models of this box. List, add and remove them, choose a version, measure, quantise.

A model is named by its name (the version in use), by name@version, or by the beginning of its hash.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import asking, instance, measuring, quantising
from appliance.errors import BusError, ModelError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.inference.library import Entry, Library

LOAD_S = 1200.0  # an NPU's first compilation takes minutes
MODEL = "name, name@version, or the beginning of a hash"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "models",
        help="list, add, choose, measure, quantise models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(verbs, "list", run_list, "the models of this box, and where they run")
    _verb(verbs, "show", run_show, "all that is known of a model; its files are verified").add_argument(
        "model", metavar="MODEL", help=MODEL
    )
    add = _verb(verbs, "add", run_add, "bring a model in; the first one of its name is in use at once")
    add.add_argument("source", type=Path, metavar="FOLDER|FILE", help="a bundle, or a .xml, .onnx or .tflite file")
    add.add_argument("--card", type=Path, metavar="FILE", help="the card of a FILE: at least name, version and task")
    add.add_argument("--use", action="store_true", help="use it from now on")
    use = _verb(verbs, "use", run_use, "choose the version that is used under a name")
    use.add_argument("model", metavar="MODEL", help="name@version, or the beginning of a hash; a name with --previous")
    use.add_argument("--previous", action="store_true", help="go back to the one that was used before")
    _verb(verbs, "remove", run_remove, "delete a model that is not in use").add_argument(
        "model", metavar="MODEL", help=MODEL
    )
    for verb, summary in (("load", "serve it, until Millwright ends"), ("unload", "serve it no longer, until it ends")):
        _verb(verbs, verb, run_serving, summary).add_argument("model", metavar="MODEL", help="name, or name@version")
        verbs.choices[verb].set_defaults(verb=verb)
    measuring.register(_verb(verbs, "bench", measuring.run, "how fast a model is on each device"))
    quantising.register(
        _verb(verbs, "quantize", quantising.run, "make a model small and fast: eight bits for a number")
    )


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


# ---- reading --------------------------------------------------------------------------------------------------------


def run_list(args: argparse.Namespace) -> int:
    from appliance import computing

    config, _ = instance.configuration(args)
    entries, problems = computing.library(config).survey()
    served, planned = _served(config) or {}, _planned_device(config)
    rows = [{**_summary(entry), **_whereabouts(entry, served, planned)} for entry in entries]
    if args.json:
        _print_json({"models": rows, "problems": [problem.message for problem in problems]})
    else:
        print("\n".join(_table(rows)))
        for problem in problems:
            print(f"\n{problem}")
    return 1 if problems else 0


def run_show(args: argparse.Namespace) -> int:
    from appliance import computing
    from appliance.inference import models

    config, _ = instance.configuration(args)
    entry = computing.library(config).find(args.model)
    bundle = models.load(entry.folder)
    shown = {**_summary(entry), **_whereabouts(entry, _served(config) or {}, ""), "folder": str(entry.folder)}
    if args.json:
        _print_json({**shown, "card": _plain_card(entry)})
    else:
        print("\n".join(_described(bundle.card, shown)))
    return 0


def _summary(entry: "Entry") -> dict[str, Any]:
    card = entry.card
    return {
        "name": card.name,
        "version": card.version,
        "task": card.task,
        "hash": entry.digest,
        "bytes": entry.bytes,
        "current": entry.current,
        "previous": entry.previous,
        "shipped": entry.shipped,
    }


def _whereabouts(entry: "Entry", served: dict[str, Any], planned: str) -> dict[str, Any]:
    """Whether it is served now, and on which device: the real one, else the one that would be tried first."""
    here = next((one for one in served.values() if one.get("hash") == entry.digest), None)
    return {
        "served": here is not None,
        "device": here["device"] if here else planned,
        "fallback": here["fallback"] if here else "",
    }


def _served(config: "Config") -> dict[str, Any] | None:
    """What the running infer service tells of its models; None where none runs."""
    try:
        state = instance.play(_look(config)).services.get("infer")
    except BusError:
        return None
    if state is None or not state.online:
        return None
    models = state.detail.get("models")
    return {name: one for name, one in models.items() if isinstance(one, dict)} if isinstance(models, dict) else {}


async def _look(config: "Config") -> Any:
    async with instance.session(config) as bus:
        return await instance.look(bus)


def _planned_device(config: "Config") -> str:
    from appliance import computing
    from appliance.inference import policy

    backend = computing.inference_backend(config)
    wishes = policy.wishes(computing.inference_terms(config).devices, computing.devices_for(backend)())
    return next(wish.device for wish in wishes if not wish.reason)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from appliance.services.words import columns

    table = [("NAME", "VERSION", "TASK", "DEVICE", "SIZE", "HASH", "")]
    for row in rows:
        words = [word for word in ("current", "previous", "shipped", "served") if row[word]]
        table.append(
            (
                row["name"],
                row["version"],
                row["task"],
                row["device"],
                measuring.size(row["bytes"]),
                row["hash"][:12],
                ", ".join(words) + (f"; {row['fallback']}" if row["fallback"] else ""),
            )
        )
    return columns(table)


def _described(card: Any, shown: dict[str, Any]) -> list[str]:
    from appliance.inference.cards import text_of
    from appliance.services.words import printable

    states = [word for word in ("current", "previous", "shipped", "served") if shown[word]]
    head = [
        f"# {shown['folder']}",
        f"# verified, {measuring.size(shown['bytes'])}, {', '.join(states) or 'not in use'}",
    ]
    return [*head, "", *(printable(line) for line in text_of(card).splitlines())]


def _plain_card(entry: "Entry") -> Any:
    import msgspec

    return msgspec.to_builtins(entry.card)


# ---- changing -------------------------------------------------------------------------------------------------------


def run_add(args: argparse.Namespace) -> int:
    from appliance import computing
    from appliance.inference import inspection

    config, _ = instance.configuration(args)
    library = computing.library(config)
    with _bundle_of(args.source, args.card, config) as folder:
        entry, new = library.add(
            folder, lambda bundle: inspection.check(bundle, computing.inference_backend(config, bundle.card.backend))
        )
    if args.use:
        library.use(entry)
        entry = library.find(entry.title)
    if args.json:
        _print_json({**_summary(entry), "new": new})
        return 0
    print(f"{entry.title} is {'added' if new else 'here already'} ({entry.digest[:12]})")
    if not entry.current:
        print(f"  -> in use is another version; to use this one: millwright models use {entry.title}")
    return 0


@contextmanager
def _bundle_of(source: Path, card: Path | None, config: "Config") -> Iterator[Path]:
    """The source itself where it is a bundle, else a bundle made of the file and its card."""
    from appliance import computing
    from appliance.inference import cards, inspection, models

    if source.is_dir():
        if card is not None:
            raise ModelError(f"{source}: is a folder, which has its own {models.CARD}", "Leave out --card.")
        yield source
        return
    if card is None:
        raise ModelError(
            f"{source}: a model's file says too little of itself",
            f"Write a card and name it with --card; the shortest is:\n{cards.SHORTEST}",
        )
    with tempfile.TemporaryDirectory(prefix="millwright-") as name:
        folder = Path(name)
        model = cards.copy_model(source, folder)
        backend = computing.inference_backend(config, cards.backend_of(card))
        cards.complete(folder, card, *inspection.look(model, backend))
        yield folder


def run_use(args: argparse.Namespace) -> int:
    from appliance import computing

    config, _ = instance.configuration(args)
    library = computing.library(config)
    entry = library.previous(args.model) if args.previous else library.find(args.model)
    library.use(entry)
    effects = list(_effects(entry, config))
    if args.json:
        _print_json({**_summary(library.find(entry.title)), "effects": effects})
        return 0
    print(f"{entry.title} is in use ({entry.digest[:12]})")
    for effect in effects:
        print(f"  -> {effect}")
    return 0


def _effects(entry: "Entry", config: "Config") -> Iterator[str]:
    """When those who compute with a model of this name take the new version up."""
    from appliance import computing

    choice = computing.detector_choice(config)
    name, _, version = (config.detect.model or choice.name).partition("@")
    if name == entry.card.name and version:
        yield f"the detector keeps {config.detect.model}, which `detect.model` names"
    elif name == entry.card.name:
        yield "the detector changes over to it within seconds, where it runs, and learns what it makes of each asset"
    elif entry.card.task == "reconstruction":
        yield f'the detector computes with another model; to use this one: detect.model = "{entry.card.name}"'
    if any(one.get("model") == entry.card.name for one in (_served(config) or {}).values()):
        yield "what is served follows within a second"


def run_remove(args: argparse.Namespace) -> int:
    from appliance import computing

    config, _ = instance.configuration(args)
    library = computing.library(config)
    entry = library.find(args.model)
    _refuse_used(entry, config, library)
    library.remove(entry)
    if args.json:
        _print_json(_summary(entry))
    else:
        print(f"{entry.title} is removed ({entry.digest[:12]})")
    return 0


def _refuse_used(entry: "Entry", config: "Config", library: "Library") -> None:
    """ModelError for what the configuration or a running service uses."""
    from appliance import computing

    if config.detect.model and computing.detector_folder(config).resolve() == entry.folder.resolve():
        raise ModelError(f"{entry.title} is in use: `detect.model` names it", "Name another one there first.")
    for reference in config.infer.models:
        if reference == entry.title or (reference == entry.card.name and entry.current):
            raise ModelError(f"{entry.title} is in use: `infer.models` names it", "Take it out there first.")
    served = _served(config) or {}
    if any(one.get("hash") == entry.digest for one in served.values()):
        raise ModelError(
            f"{entry.title} is in use: it is served",
            f"First: millwright models unload {entry.title}, or use another one.",
        )


def run_serving(args: argparse.Namespace) -> int:
    from appliance.services.words import printable

    told = asking.result(args, "infer", args.verb, {"model": args.model}, answer_s=LOAD_S)
    if args.json:
        _print_json(told)
    else:
        device = f" on {printable(str(told['device']))}" if "device" in told else ""
        print(f"{args.model} is {args.verb}ed{device}")
    return 0


def _print_json(value: Any) -> None:
    from appliance.services.words import json_text

    print(json_text(value))
