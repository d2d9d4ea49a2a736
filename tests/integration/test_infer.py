"""Models served to others: `millwright run broker infer` as a process of its own, asked by Triton's client, by raw
sockets, over the bus, and by the command line."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, shared_memory

from appliance.__main__ import main as command_line
from appliance.bus.mqtt import MqttBus
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, Kind, State
from appliance.inference import models
from appliance.inference.library import Library
from appliance.services import commands
from tests import bundles

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Box:
    """A running Millwright that serves toy@1.0.0 (and holds toy@2.0.0), sums and image, beside the shipped model."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def library(self) -> Library:
        return Library(self.folder / "state" / "models", models.shipped())

    def millwright(self, *words: str) -> int:
        return command_line(["--config", str(self.folder / "box.toml"), *words])

    def ask(self, verb: str, **args: Any) -> Command:
        async def asked() -> Command:
            async with asyncio.timeout(PATIENCE_S), MqttBus(f"unix:{self.folder}/run/mqtt.sock") as bus:
                return await commands.ask(bus, "infer", verb, args, "test", PATIENCE_S)

        return asyncio.run(asked())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    if shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is None:
        pytest.skip("mosquitto is not installed")
    folder = Path(tempfile.mkdtemp(prefix="mw-"))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        box = Box(folder, one.getsockname()[1])
    (folder / "files").mkdir()
    (folder / "box.toml").write_text(
        f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n'
        f'[infer]\nport = {box.port}\nfolders = ["{folder}/files"]\ninline_kb = 4\nmax_body_mb = 8\n'
    )
    for draft in (
        bundles.classifier(folder / "toy1"),
        bundles.classifier(folder / "toy2", version="2.0.0", factor=10.0),
        bundles.sums(folder / "sums"),
        bundles.image(folder / "image"),
        bundles.onnx_classifier(folder / "foreign"),
    ):
        box.library.add(draft)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONWARNINGS": "error", "COVERAGE_RCFILE": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance", "--config", str(folder / "box.toml"), "run", "broker", "infer"],
        env=environment,
    )
    try:
        until(lambda: answers_ready(box))
        yield box
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        shutil.rmtree(folder)


def answers_ready(box: Box) -> bool:
    with contextlib.suppress(OSError):
        return get(box, "/v2/health/ready")[0] == 200
    return False


def get(box: Box, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    """By a plain socket, as curl does."""
    with socket.create_connection(("127.0.0.1", box.port), PATIENCE_S) as one:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        one.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: one.recv(65536), b""))
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture
def client(box: Box) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(box.address, concurrency=4) as found:
        yield found


def tensor(name: str, array: np.ndarray, datatype: str, binary: bool = True) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


# ---- Triton's client ------------------------------------------------------------------------------------------------


def test_the_server_tells_of_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    assert told["name"] == "millwright"
    assert {"binary_tensor_data", "system_shared_memory"} <= set(told["extensions"])


def test_a_model_tells_of_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1.0.0")
    assert not client.is_model_ready("toy", "3.0.0")
    assert not client.is_model_ready("nobody")
    assert client.get_model_metadata("image") == {
        "name": "image",
        "versions": ["1.0.0"],
        "platform": "openvino_ir",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 5, 3]}],
        "outputs": [{"name": "mean", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_numbers_go_in_and_come_out(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    given = rows(5)
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    answer = client.infer("toy", [tensor("x", given, "FP32", binary_in)], outputs=outputs, request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("scores"), given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("seven", "toy", "1.0.0")
    assert told["parameters"] == {"device": "CPU"}


def test_an_onnx_model_answers(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("foreign")["platform"] == "onnx_onnxv1"
    given = rows(5)
    answer = client.infer("foreign", [tensor("x", given, "FP32")])
    np.testing.assert_allclose(answer.as_numpy("scores"), given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)


def test_two_inputs_of_other_types(client: triton.InferenceServerClient) -> None:
    whole, part = np.array([[1, 2], [3, -4]], np.int32), np.array([[0.5, 0.25], [0, 8]], np.float16)
    answer = client.infer("sums", [tensor("part", part, "FP16"), tensor("whole", whole, "INT32")])
    np.testing.assert_array_equal(answer.as_numpy("total"), whole + part.astype(np.float32))
    np.testing.assert_array_equal(answer.as_numpy("truth"), whole > 2)


def test_an_image_as_it_comes_from_a_camera(client: triton.InferenceServerClient) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), np.uint8)
    answer = client.infer("image", [tensor("image", pixels, "UINT8")]).as_numpy("mean")
    np.testing.assert_allclose(answer, ((pixels - [10, 20, 30]) / [2, 4, 8]).mean(axis=(1, 2)), rtol=1e-4)


def test_classes_and_decoded_answers(client: triton.InferenceServerClient) -> None:
    given = np.array([[1, 0, 0, 0], [0, -3, 0, 0]], np.float32)
    outputs = [
        triton.InferRequestedOutput("scores", class_count=1),
        triton.InferRequestedOutput("decoded", binary_data=False),
    ]
    answer = client.infer("toy", [tensor("x", given, "FP32")], outputs=outputs)
    assert answer.as_numpy("scores").tolist() == [[b"2.000000:2:c"], [b"-9.000000:0:a"]]
    assert [json.loads(row)["label"] for row in answer.as_numpy("decoded")] == ["c", "a"]


def test_tensors_in_shared_memory(client: triton.InferenceServerClient) -> None:
    given, key = rows(8), f"/millwright-test-{os.getpid()}"
    region = shared_memory.create_shared_memory_region("both", key, given.nbytes + 96)
    try:
        shared_memory.set_shared_memory_region(region, [given])
        client.register_system_shared_memory("both", key, given.nbytes + 96)
        assert client.get_system_shared_memory_status()[0]["byte_size"] == given.nbytes + 96
        entered = triton.InferInput("x", [8, 4], "FP32")
        entered.set_shared_memory("both", given.nbytes)
        left = triton.InferRequestedOutput("scores")
        left.set_shared_memory("both", 96, offset=given.nbytes)
        answer = client.infer("toy", [entered], outputs=[left])
        assert answer.get_output("scores")["parameters"]["shared_memory_byte_size"] == 96
        found = shared_memory.get_contents_as_numpy(region, np.float32, [8, 3], offset=given.nbytes)
        np.testing.assert_allclose(found, given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)
        client.unregister_system_shared_memory("both")
        assert client.get_system_shared_memory_status() == []
    finally:
        shared_memory.destroy_shared_memory_region(region)


@pytest.mark.parametrize("form", ["gzip", "deflate"])
def test_a_compressed_request(client: triton.InferenceServerClient, form: str) -> None:
    given = rows(50)
    answer = client.infer("toy", [tensor("x", given, "FP32")], request_compression_algorithm=form)
    np.testing.assert_allclose(answer.as_numpy("scores"), given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)


def test_requests_at_once_do_not_mix(client: triton.InferenceServerClient) -> None:
    given = [rows(1 + seed % 7, seed) for seed in range(120)]
    waiting = [client.async_infer("toy", [tensor("x", one, "FP32")]) for one in given]
    for one, answer in zip(given, waiting, strict=True):
        found = answer.get_result(timeout=PATIENCE_S).as_numpy("scores")
        np.testing.assert_allclose(found, one @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)


WRONG: dict[str, tuple[str, np.ndarray, str, str]] = {
    "dtype": ("x", np.zeros((1, 4)), "FP64", r"model 'toy': input 'x' is FP64\[1, 4\], not FP32\[\?, 4\]"),
    "shape": ("x", np.zeros((1, 5), np.float32), "FP32", r"model 'toy': input 'x' is FP32\[1, 5\], not FP32\[\?, 4\]"),
    "name": ("y", np.zeros((1, 4), np.float32), "FP32", r"model 'toy': there is no input 'y' \(.*x FP32\[\?, 4\]"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_an_error_names_model_and_tensor_and_what_fits(client: triton.InferenceServerClient, name: str) -> None:
    given, array, datatype, problem = WRONG[name]
    with pytest.raises(InferenceServerException, match=problem) as caught:
        client.infer("toy", [tensor(given, array, datatype)])
    assert caught.value.status() == "400"


def test_an_unknown_model_or_output(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        client.infer("nobody", [tensor("x", rows(1), "FP32")])
    with pytest.raises(InferenceServerException, match=r"no output 'odds' \(Its outputs are: scores"):
        client.infer("toy", [tensor("x", rows(1), "FP32")], outputs=[triton.InferRequestedOutput("odds")])
    pair = [
        tensor("whole", np.zeros((1, 2), np.int32), "INT32"),
        tensor("part", np.zeros((1, 2), np.float16), "FP16"),
    ]
    with pytest.raises(InferenceServerException, match="nothing decodes the answers of a model for 'arithmetic'"):
        client.infer("sums", pair, outputs=[triton.InferRequestedOutput("decoded")])


def test_a_body_that_is_too_large_is_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="larger than 8,388,608 bytes"):
        client.infer("toy", [tensor("x", rows(600_000), "FP32")])


def test_a_models_configuration_and_statistics(client: triton.InferenceServerClient) -> None:
    told = client.get_model_config("image")
    assert told["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, 4, 5, 3]}]
    assert told["output"] == [{"name": "mean", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert told["max_batch_size"] == 0
    assert client.get_model_config("image", "1.0.0") == told
    (before,) = client.get_inference_statistics("image")["model_stats"]
    pixels = np.zeros((3, 4, 5, 3), np.uint8)
    client.infer("image", [tensor("image", pixels, "UINT8")])
    with pytest.raises(InferenceServerException):
        client.infer("image", [tensor("image", pixels, "UINT8")], outputs=[triton.InferRequestedOutput("none")])
    (after,) = client.get_inference_statistics("image", "1.0.0")["model_stats"]
    gained = {key: after[key] - before[key] for key in ("inference_count", "execution_count")}
    assert gained == {"inference_count": 3, "execution_count": 1}
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 1
    assert after["last_inference"] > before["last_inference"]
    assert after in client.get_inference_statistics()["model_stats"]
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        client.get_inference_statistics("nobody")


def test_what_only_triton_has_is_refused_with_what_takes_its_place(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"no traces \(`millwright models bench` measures"):
        client.get_trace_settings("toy")
    with pytest.raises(InferenceServerException, match="no log settings"):
        client.get_log_settings()
    with pytest.raises(InferenceServerException, match="no shared memory of CUDA"):
        client.get_cuda_shared_memory_status()
    with pytest.raises(InferenceServerException, match="cannot be handed over here"):
        client.load_model("toy", config="{}")


def test_models_come_and_go(client: triton.InferenceServerClient) -> None:
    listed = {(one["name"], one["version"]): one["state"] for one in client.get_model_repository_index()}
    assert listed[("toy", "1.0.0")] == "READY"
    assert listed[("toy", "2.0.0")] == "UNAVAILABLE"
    client.load_model("toy@2.0.0")
    given = rows(2)
    answer = client.infer("toy", [tensor("x", given, "FP32")], model_version="2.0.0").as_numpy("scores")
    np.testing.assert_allclose(answer, 10 * given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-3)
    assert client.get_model_metadata("toy")["versions"] == ["1.0.0", "2.0.0"]
    client.unload_model("toy")
    with pytest.raises(InferenceServerException, match="millwright models load toy"):
        client.infer("toy", [tensor("x", given, "FP32")])
    client.load_model("toy")
    assert client.is_model_ready("toy", "1.0.0")
    assert not client.is_model_ready("toy", "2.0.0")


def test_a_new_version_takes_over_without_an_error(box: Box) -> None:
    given, stop, failures = rows(3), threading.Event(), []
    versions: set[str] = set()

    def work() -> None:
        with triton.InferenceServerClient(box.address) as client:
            while not stop.is_set():
                answer = client.infer("toy", [tensor("x", given, "FP32")])
                version = answer.get_response()["model_version"]
                factor = {"1.0.0": 1, "2.0.0": 10}[version]
                if not np.allclose(answer.as_numpy("scores"), factor * given @ bundles.WEIGHTS, rtol=1e-3, atol=1e-2):
                    failures.append(version)
                versions.add(version)

    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(work) for _ in range(2)]
        try:
            until(lambda: versions == {"1.0.0"})
            assert box.millwright("models", "use", "toy@2.0.0") == 0
            until(lambda: versions == {"1.0.0", "2.0.0"})
            assert box.millwright("models", "use", "toy", "--previous") == 0
            versions.clear()
            until(lambda: "1.0.0" in versions)
        finally:
            stop.set()
        for one in working:
            one.result()
    assert failures == []


# ---- plain sockets --------------------------------------------------------------------------------------------------


def test_json_by_a_plain_socket(box: Box) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1, 0, 0, 0]]}]}
    code, told = get(box, "/v2/models/toy/infer", "POST", json.dumps(body).encode())
    assert code == 200
    assert told["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 1.0, 2.0]}]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/toy/infer", 404),
        ("GET", "/v2/models/toy/versions/9/ready", 404),
        ("POST", "/v2/models/toy/infer", 400),
        ("POST", "/v2/systemsharedmemory/region/x/register", 400),
        ("GET", "/v2/systemsharedmemory/region/x/status", 404),
        ("POST", "/v2/repository/models/nobody/load", 400),
        ("POST", "/v2/repository/models/nobody/unload", 400),
    ],
)
def test_what_is_not_there_is_told_in_json(box: Box, method: str, path: str, code: int) -> None:
    found, told = get(box, path, method)
    assert (found, set(told)) == (code, {"error"})


# ---- the bus --------------------------------------------------------------------------------------------------------


def test_a_command_asks_a_model(box: Box) -> None:
    answer = box.ask("run", model="toy", inputs={"x": [[1, 0, 0, 0]]})
    assert answer.state is CommandState.SUCCESSFUL
    assert {key: answer.result[key] for key in ("model", "version", "device", "outputs")} == {
        "model": "toy",
        "version": "1.0.0",
        "device": "CPU",
        "outputs": {},
    }
    assert answer.result["decoded"][0]["label"] == "c"
    raw = box.ask("run", model="toy", inputs={"x": [[1, 0, 0, 0]]}, outputs=["scores"], decode=False)
    assert raw.result["outputs"] == {"scores": {"dtype": "float32", "shape": [1, 3], "data": [0.0, 1.0, 2.0]}}
    assert "decoded" not in raw.result


def test_a_command_names_a_file(box: Box) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.save(box.folder / "files" / "last.npy", pixels)
    answer = box.ask("run", model="image", inputs={"image": {"file": f"{box.folder}/files/last.npy"}})
    expected = ((pixels - [10, 20, 30]) / [2, 4, 8]).mean(axis=(1, 2))
    np.testing.assert_allclose([row["embedding"] for row in answer.result["decoded"]], expected, rtol=1e-4)
    refused = box.ask("run", model="image", inputs={"image": {"file": f"{box.folder}/box.toml"}})
    assert refused.state is CommandState.FAILED
    assert "not below one of the folders" in refused.reason


def test_a_command_names_shared_memory(box: Box) -> None:
    given, name = rows(2000), f"millwright-test-{os.getpid()}"
    path = Path("/dev/shm") / name
    path.write_bytes(given.tobytes() + bytes(2000 * 3 * 4))
    try:
        place = {"shm": f"/{name}", "offset": given.nbytes}
        inputs = {"x": {"shm": f"/{name}", "shape": [2000, 4]}}
        answer = box.ask("run", model="toy", inputs=inputs, outputs={"scores": place}, decode=False)
        assert answer.result["outputs"]["scores"] == {
            "dtype": "float32",
            "shape": [2000, 3],
            **place,
            "bytes": 24_000,
        }
        found = np.frombuffer(path.read_bytes()[given.nbytes :], np.float32).reshape(2000, 3)
        np.testing.assert_allclose(found, given @ bundles.WEIGHTS, rtol=1e-4, atol=1e-4)
        refused = box.ask("run", model="toy", inputs=inputs, outputs=["scores"], decode=False)
        assert "too many for the bus" in refused.reason
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"model": "nobody", "inputs": {}}, "there is no model 'nobody'"),
        ({"model": "toy", "inputs": {}}, "input 'x' is missing"),
        (
            {"model": "toy", "inputs": {"x": [[1, 2]]}},
            "model 'toy': the model's input 'x' takes float32[?, 4], not float32[1, 2]",
        ),
        ({"model": "toy", "inputs": {"x": [["1", 2, 3, 4]]}}, "input 'x'"),
        ({"model": "toy", "version": "9.0.0", "inputs": {}}, "there is no model 'toy@9.0.0'"),
        ({"model": "toy"}, "the arguments do not fit"),
        ({"model": "toy", "inputs": {"x": [[0] * 4] * 1000}}, "too many for the bus"),
    ],
)
def test_a_command_that_does_not_fit_fails_with_the_reason(box: Box, args: dict[str, Any], problem: str) -> None:
    answer = box.ask("run", **args)
    assert answer.state is CommandState.FAILED
    assert problem in answer.reason


def test_the_service_tells_of_itself_and_its_books_balance(box: Box) -> None:
    box.ask("run", model="toy", inputs={"x": [[1, 0, 0, 0]]})

    async def balanced() -> State:
        async with (
            asyncio.timeout(PATIENCE_S),
            MqttBus(f"unix:{box.folder}/run/mqtt.sock") as bus,
            bus.subscribe(topics.state("infer"), qos=1) as batches,
        ):
            async for batch in batches:
                for message in batch:
                    state = codec.decode(Kind.STATE, message.payload, time.time_ns())
                    assert isinstance(state, State)
                    # What the broker kept may still tell of the version that was in use before.
                    if state.queued == 0 and state.processed and "toy@1.0.0" in state.detail["models"]:
                        return state
        raise AssertionError

    state = asyncio.run(balanced())
    assert state.received == state.processed + sum(state.dropped.values())
    assert state.detail["models"]["toy@1.0.0"]["device"] == "CPU"
    assert state.detail["port"] == box.port


# ---- the command line beside a running Millwright ------------------------------------------------------------------


def test_a_model_that_is_served_is_not_removed(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.millwright("models", "remove", "sums") == 1
    assert "sums@2.0.0 is in use: it is served" in capsys.readouterr().err


def test_load_and_unload(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.millwright("models", "unload", "sums") == 0
    assert box.millwright("models", "unload", "sums") == 1
    assert "millwright models load sums" in capsys.readouterr().err
    assert box.millwright("models", "load", "sums", "--json") == 0
    assert json.loads(capsys.readouterr().out)["device"] == "CPU"
    assert box.millwright("models", "load", "nobody") == 1


def test_the_list_tells_what_is_served(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    card = models.read_card(models.shipped())
    expected = {"toy@1.0.0", "sums@2.0.0", "image@1.0.0", f"{card.name}@{card.version}"}
    until(lambda: served_now(box, capsys) >= expected)


def served_now(box: Box, capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert box.millwright("models", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert {one["device"] for one in listed} == {"CPU"}
    return {f"{one['name']}@{one['version']}" for one in listed if one["served"]}
