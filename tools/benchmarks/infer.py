"""Inference: ours beside OpenVINO's benchmark_app, beside a bare request, and beside onnxruntime and LiteRT.

tools/bench infer [--rounds N] [--json FILE]

The shipped model and three float32 networks with the same weights in each runtime's format (see `nets`), on the CPU.
Throughput: two threads call ours, benchmark_app has its own hint for throughput, each in a process of its own; we hand
every batch in and every answer out, benchmark_app does not. Latency and the other runtimes: one thread each, in one
process; of a turn's calls the time counts that a tenth of them keeps. Contestants take turns; figures are medians over
the rounds.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from appliance.inference import engine, models
from appliance.inference.backends import litert, openvino
from appliance.inference.policy import Terms
from appliance.inference.port import Plan
from tools.benchmarks.figures import Goal, median, percentile

ROOT = Path(__file__).parents[2]
MODELS = ("autoencoder", "mlp", "cnn")
BATCH = 16  # rows
THREADS = 2
ROUNDS, SECONDS = 3, 2.0
TURN_S = 0.15  # of one contestant in one process
UNDISTURBED = 0.1  # share of a turn's calls that nothing else on the machine got in the way of
AGREE = 1e-3  # of the largest value
OURS, APP = "ours", "benchmark_app"

Call = Callable[[], object]
Samples = dict[str, list[float]]


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.role:
        print(_throughput_of_ours(Path(options.role)))
        return 0
    _install_peers()
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as folder:
        files = _files(Path(folder))
        result = {
            "throughput": {name: _throughput(path, name, options.rounds) for name, path in _measured(files).items()},
            "latency": _added_latency(options.rounds),
            "runtimes": {name: _runtimes(files[name], name, options.rounds) for name in MODELS},
        }
    goals = _goals(result)
    _show(result, goals)
    if options.json:
        plain = {"machine": _machine(), **result, "goals": [goal.plain() for goal in goals]}
        options.json.write_text(json.dumps(plain, indent=2) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench infer", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each contestant (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _install_peers() -> None:
    try:
        import onnx  # noqa: F401  is it there?
        import onnxruntime  # noqa: F401
    except ImportError:
        subprocess.run([ROOT / "tools" / "setup", "peers"], check=True)


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """By network and suffix."""
    from tools.benchmarks import nets

    found: dict[str, dict[str, Path]] = {}
    for name in MODELS:
        net = nets.make(name)
        found[name] = {suffix: folder / f"{name}{suffix}" for suffix in nets.WRITERS}
        for suffix, write in nets.WRITERS.items():
            write(net, found[name][suffix])
    return found


def _measured(files: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    return {"shipped": models.load(models.shipped()).model, **{name: files[name][".xml"] for name in MODELS}}


# Throughput beside benchmark_app


def _throughput(path: Path, name: str, rounds: int) -> dict[str, Any]:
    samples: Samples = {OURS: [], APP: []}
    for number in range(rounds):
        command = [sys.executable, "-m", "tools.benchmarks.infer", "--role", str(path)]
        samples[OURS].append(float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout))
        samples[APP].append(_throughput_of_app(path))
        _say(f"round {number + 1}  {name:<12} rows/s: ours {samples[OURS][-1]:,.0f}, {APP} {samples[APP][-1]:,.0f}")
    ratios = [ours / theirs for ours, theirs in zip(samples[OURS], samples[APP], strict=True)]
    return {"batch": BATCH, "rows_per_s": samples, "ratio": median(ratios)}


def _throughput_of_ours(path: Path) -> float:
    """Rows a second of two threads that call the port's Model."""
    model = openvino.create(openvino.Settings()).compile(path, "CPU", Plan(streams=0))
    batch = np.random.default_rng(0).standard_normal((BATCH, *model.inputs[0].shape[1:])).astype(np.float32)
    counts = [0] * THREADS
    model.infer(batch)
    began = time.perf_counter()
    end = began + SECONDS

    def work(place: int) -> None:
        infer = model.infer
        while time.perf_counter() < end:
            infer(batch)
            counts[place] += 1

    threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return BATCH * sum(counts) / (time.perf_counter() - began)


def _throughput_of_app(path: Path) -> float:
    given = ov.Core().read_model(path).inputs[0]
    shape = ",".join([str(BATCH), *(str(size.get_length()) for size in list(given.partial_shape)[1:])])
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as folder:
        told = ["-report_type", "no_counters", "-json_stats", "-report_folder", folder]
        how = ["-d", "CPU", "-hint", "throughput", "-infer_precision", "f32", "-t", str(int(SECONDS))]
        command: list[str] = [
            str(Path(sys.executable).with_name(APP)),
            "-m",
            str(path),
            "-shape",
            f"{given.get_any_name()}[{shape}]",
            *how,
            *told,
        ]
        subprocess.run(command, capture_output=True, check=True)
        (report,) = Path(folder).glob("*.json")
        results = json.loads(report.read_text())["execution_results"]
    return BATCH * float(results["total number of iterations"]) / (float(results["total execution time (ms)"]) / 1000)


# What the port adds to a request, and what micro-batches save


def _added_latency(rounds: int) -> dict[str, Any]:
    """Microseconds of a call with one row of the shipped model: a bare request, the port's Model, the engine."""
    bundle = models.load(models.shipped())
    backend = openvino.create(openvino.Settings())
    model = backend.compile(bundle.model, "CPU")
    started = engine.start(bundle, backend, Terms(devices=("CPU",)))
    one = np.random.default_rng(0).standard_normal((1, bundle.card.window)).astype(np.float32)
    many = np.repeat(one, BATCH, axis=0)
    calls: dict[str, Call] = {
        "bare request": _bare(bundle.model, one),
        "model": lambda: model.infer(one),
        "engine": lambda: started.infer(one),
        f"engine, {BATCH} rows": lambda: started.infer(many),
    }
    samples = _turns(calls, 5 * rounds)
    bare = median(samples["bare request"])
    return {
        "us": {name: median(taken) for name, taken in samples.items()},
        "added_us": median(samples["engine"]) - bare,
        "micro_batching": BATCH * median(samples["engine"]) / median(samples[f"engine, {BATCH} rows"]),
    }


def _bare(path: Path, row: np.ndarray) -> Call:
    """The least that OpenVINO can be asked from Python: everything is preset, nothing is copied."""
    core = ov.Core()
    graph = core.read_model(path)
    graph.reshape({0: ov.PartialShape(list(row.shape))})
    properties = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(graph, "CPU", properties)
    request = ov._pyopenvino.CompiledModel.create_infer_request(compiled)
    entered = row.copy()
    request.set_input_tensor(ov.Tensor(entered, shared_memory=True))
    infer = request.infer

    def call(keep: Any = (compiled, entered)) -> None:
        infer({}, True, False)

    return call


# Beside other runtimes


def _runtimes(files: Mapping[str, Path], name: str, rounds: int) -> dict[str, Any]:
    """One thread each. Microseconds of a call with one row and with BATCH rows."""
    found: dict[str, Any] = {}
    for count in (1, BATCH):
        ours = openvino.create(openvino.Settings()).compile(files[".xml"], "CPU", Plan(threads=1))
        rows = np.random.default_rng(1).standard_normal((count, *ours.inputs[0].shape[1:])).astype(np.float32)
        calls: dict[str, Call] = {
            OURS: functools.partial(ours.infer, rows),
            "onnxruntime": _onnxruntime(files[".onnx"], rows),
            "LiteRT": _litert(files[".tflite"], rows),
            "LiteRT, our backend": _our_litert(files[".tflite"], rows),
        }
        _agree(name, {who: np.asarray(call()) for who, call in calls.items()})
        samples = _turns(calls, 2 * rounds)
        found[str(count)] = {who: median(taken) for who, taken in samples.items()}
        shown = ", ".join(f"{who} {taken:.1f}" for who, taken in found[str(count)].items())
        _say(f"{name:<12} {count:>2} rows, us a call: {shown}")
    return found


def _onnxruntime(path: Path, rows: np.ndarray) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"given": rows})[0]


def _channels_last(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.transpose(0, 2, 3, 1)) if rows.ndim == 4 else rows


def _litert(path: Path, rows: np.ndarray) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    given = _channels_last(rows)
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    entry, left = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(entry, given.shape)
    interpreter.allocate_tensors()

    def call() -> np.ndarray:
        interpreter.set_tensor(entry, given)
        interpreter.invoke()
        result: np.ndarray = interpreter.get_tensor(left)
        return result

    return call


def _our_litert(path: Path, rows: np.ndarray) -> Call:
    given = _channels_last(rows)
    model = litert.create(litert.Settings()).compile(path, "CPU")
    return lambda: model.infer(given)


def _agree(name: str, answers: Mapping[str, np.ndarray]) -> None:
    """Who computes something else is not measured."""
    expected = answers[OURS]
    for who, answer in answers.items():
        off = np.max(np.abs(answer - expected)) / np.max(np.abs(expected))
        if not off <= AGREE:
            raise SystemExit(f"{who} is {off:.1%} off our answers on {name}: there is nothing to compare")


def _turns(calls: Mapping[str, Call], turns: int) -> Samples:
    """Microseconds of a call, of which a tenth of a turn's calls is quicker."""
    samples: Samples = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            samples[name].append(_call_us(call))
    return samples


def _call_us(call: Call) -> float:
    call()
    taken = []
    end = time.perf_counter_ns() + int(TURN_S * 1e9)
    while (began := time.perf_counter_ns()) < end:
        call()
        taken.append(time.perf_counter_ns() - began)
    return percentile(taken, UNDISTURBED) / 1000


# Telling


def _goals(result: Mapping[str, Any]) -> list[Goal]:
    latency = result["latency"]
    return [
        *(
            Goal(f"{name}: throughput of {APP}'s, batch {BATCH}", 0.95, figures["ratio"])
            for name, figures in result["throughput"].items()
        ),
        Goal(f"rows a second in batches of {BATCH}, of one by one", 5.0, latency["micro_batching"]),
        Goal("us that a call adds to a bare request, one row", 10.0, latency["added_us"], at_most=True),
    ]


def _show(result: Mapping[str, Any], goals: Sequence[Goal]) -> None:
    print(f"\n{_machine()}")
    print("\none row of the shipped model, us a call")
    for name, taken in result["latency"]["us"].items():
        print(f"  {name:<24} {taken:8.2f}")
    print("\none thread, us a call (and of ours)")
    for name, by_count in result["runtimes"].items():
        for count, taken in by_count.items():
            shown = "  ".join(f"{who} {us:.1f} ({us / taken[OURS]:.2f})" for who, us in taken.items())
            print(f"  {name:<12} {count:>2} rows  {shown}")
    print()
    for goal in goals:
        print(goal.line())


def _machine() -> str:
    load = os.getloadavg()[0]
    cores = f"{os.cpu_count()} cores (load {load:.1f})"
    return f"{platform.machine()}, {cores}, Python {platform.python_version()}, OpenVINO {ov.__version__}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
