"""`millwright models bench`: latency and throughput of a model on each device, as OpenVINO's benchmark_app has them."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import InferenceError, ModelError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.inference.isolated.workers import Workers
    from appliance.inference.port import Backend, Model

BATCHES = (1, 16)
DEADLINE_S = 60.0  # of one call on a device that may hang


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|FOLDER|FILE", help="one of this box, a bundle, or a model's file")
    parser.add_argument("--device", metavar="NAME", help="only this one: CPU, GPU, NPU")
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"rows of a call (default: {' and '.join(map(str, BATCHES))})"
    )
    parser.add_argument("--seconds", type=float, default=2.0, metavar="N", help="of each measurement (default: 2)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="calls at once, at most, for throughput (default: one a CPU)"
    )


def run(args: argparse.Namespace) -> int:
    from appliance import computing
    from appliance.inference.isolated.workers import Workers
    from appliance.services.words import json_text

    if args.seconds <= 0 or (args.batch or 1) < 1 or (args.threads or 1) < 1:
        raise ModelError("--seconds, --batch and --threads are above 0", "Leave them out for what is usual.")
    config, _ = instance.configuration(args)
    title, path, backend_name = source(args.model, config)
    backend = computing.inference_backend(config, backend_name)
    workers = Workers()
    try:
        found = [_on_device(device, path, backend, workers, args) for device in _devices(args.device, backend)]
    finally:
        workers.close()
    result = {"model": title, "bytes": _bytes(path), "devices": found}
    print(json_text(result) if args.json else "\n".join(_table(result)))
    return 0 if any("latency_ms" in one for one in found) else 1


def source(text: str, config: "Config") -> tuple[str, Path, str]:
    """Title, model's file and backend's name of what a person named: a file, a bundle's folder, or one of this box."""
    from appliance import computing
    from appliance.inference import cards, models

    path = Path(text)
    if path.suffix in cards.SUFFIXES and path.is_file():
        return path.name, path, ""
    bundle = (
        models.load(path, named=False) if path.is_dir() else models.load(computing.library(config).find(text).folder)
    )
    return f"{bundle.card.name}@{bundle.card.version}", bundle.model, bundle.card.backend


def _devices(only: str | None, backend: "Backend") -> list[dict[str, Any]]:
    from appliance import computing

    known = computing.devices_for(backend)()
    chosen = [one for one in known if (one.device == only if only else one.present)]
    if not chosen:
        names = ", ".join(one.device for one in known)
        raise ModelError(f"there is no device '{only}'", f"There are: {names}. See `millwright doctor`.")
    return [
        {"device": one.device, "name": one.name, **({"reason": one.reason} if one.reason else {})} for one in chosen
    ]


def _on_device(
    told: dict[str, Any], path: Path, backend: "Backend", workers: "Workers", args: argparse.Namespace
) -> dict[str, Any]:
    if "reason" in told:
        return told
    try:
        return {**told, **_measured(told["device"], path, backend, workers, args)}
    except InferenceError as error:
        return {**told, "reason": error.message}


def _measured(
    device: str, path: Path, backend: "Backend", workers: "Workers", args: argparse.Namespace
) -> dict[str, Any]:
    """One request at a time, then as many as the device has streams: two compilations, as benchmark_app's two hints."""
    from appliance.inference import benchmark
    from appliance.inference.port import Plan

    threads = args.threads or min(os.cpu_count() or 1, 16)
    began = time.perf_counter()
    model = _compiled(path, device, Plan(streams=1), backend, workers)
    compile_s = time.perf_counter() - began
    free = all(spec.shape[:1] == (-1,) for spec in model.inputs)
    latency = benchmark.latency(model, benchmark.inputs_for(model, args.batch or 1), args.seconds)
    model.close()
    model = _compiled(path, device, Plan(streams=0), backend, workers)
    batches = [args.batch] if args.batch else BATCHES if free else BATCHES[:1]
    rows = {size: size if free else max(model.inputs[0].shape[0], 1) for size in batches}
    speeds = {str(size): round(_best(model, size, rows[size], threads, args.seconds), 1) for size in batches}
    model.close()
    parts = zip(("median", "p90", "p99", "longest"), latency[:4], strict=True)
    return {
        "compile_ms": round(compile_s * 1e3, 1),
        "latency_ms": {name: round(seconds * 1e3, 4) for name, seconds in parts},
        "calls": latency.calls,
        "rows_per_s": speeds,
        "threads": threads,
    }


def _best(model: "Model", batch: int, rows: int, threads: int, seconds: float) -> float:
    """Rows a second of one thread or of many: on a model of microseconds the interpreter makes many the slower way."""
    from appliance.inference import benchmark

    inputs = benchmark.inputs_for(model, batch)
    return max(benchmark.throughput(model, inputs, rows, count, seconds) for count in {1, threads})


def _compiled(path: Path, device: str, plan: Any, backend: "Backend", workers: "Workers") -> "Model":
    """In a process of its own where a driver may hang, which would cost what isolation costs; the CPU here."""
    if device == "CPU":
        return backend.compile(path, device, plan)
    return workers.compile(backend, path, device, plan, DEADLINE_S)


def _table(result: dict[str, Any]) -> list[str]:
    from appliance.services.words import amount, columns

    speeds = next((list(one["rows_per_s"]) for one in result["devices"] if "rows_per_s" in one), [])
    heading = ("DEVICE", "COMPILE", "MEDIAN", "P90", "P99", *(f"ROWS/S AT {size}" for size in speeds), "")
    rows = [heading]
    for one in result["devices"]:
        if "latency_ms" not in one:
            rows.append((one["device"], *[""] * (4 + len(speeds)), one["reason"]))
            continue
        times = [one["compile_ms"], *(one["latency_ms"][name] for name in ("median", "p90", "p99"))]
        rows.append(
            (
                one["device"],
                *(f"{amount(taken)} ms" for taken in times),
                *(amount(one["rows_per_s"][size]) for size in speeds),
                one["name"],
            )
        )
    return [f"{result['model']}, {size(result['bytes'])}", "", *columns(rows)]


def _bytes(path: Path) -> int:
    files = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    return sum(file.stat().st_size for file in files if file.exists())


def size(count: int) -> str:
    """Bytes for a person: 512 B, 138 kB, 2.2 MB."""
    if count < 1000:
        return f"{count} B"
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
