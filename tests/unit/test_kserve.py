"""KServe v2 in bytes, shared memory by name, tensors of commands: what is read, and what is refused with what words."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.errors import ModelError, RequestError
from appliance.inference.port import DTYPES, Array, Spec
from appliance.services.kserve import protocol
from appliance.services.kserve.regions import Regions
from appliance.services.tensors import Places, npy

SPECS = [Spec("x", "float32", (-1, 3)), Spec("n", "uint8", (2,))]


class NoMemory:
    def read(self, region: str, offset: int, size: int) -> bytearray:
        raise RequestError(400, f"there is no region '{region}'")

    def write(self, region: str, offset: int, data: memoryview) -> None:
        raise RequestError(400, f"there is no region '{region}'")


def tensors(value: Any, rest: bytes = b"", specs: Any = SPECS, header: bool = True) -> dict[str, Array]:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    asked, tail = protocol.parse(text + rest, len(text) if header else None)
    return protocol.tensors(asked, tail, specs, NoMemory())


def entry(name: str = "x", datatype: str = "FP32", shape: Any = (1, 3), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


N = entry("n", "UINT8", (2,), data=[1, 2])


def test_every_dtype_has_a_name() -> None:
    assert set(protocol.DATATYPES.values()) == set(DTYPES)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_tensors_come_back_bit_for_bit(data: st.DataObject) -> None:
    dtypes = st.sampled_from(DTYPES)
    given_ = {
        name: data.draw(arrays.arrays(data.draw(dtypes), arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)))
        for name in ("one", "two")
    }
    specs = [Spec(name, array.dtype.name, (-1,) * array.ndim) for name, array in given_.items()]
    outputs = [protocol.Wanted(name, {"binary_data": data.draw(st.booleans())}) for name in given_]
    asked = protocol.Asked([], outputs=outputs)
    try:
        body = protocol.answer(asked, {"model_name": "m"}, given_, None, [], NoMemory())
        told = b"".join(bytes(part) for part in body.parts)
        parsed = json.loads(told[: body.header])
    except UnicodeDecodeError:
        raise AssertionError("the JSON is none") from None
    finite = all(np.isfinite(array).all() for array in given_.values() if array.dtype.kind == "f")
    if finite:
        back = tensors(
            msgspec.json.encode({"inputs": parsed["outputs"]}), told[body.header :] if body.header else b"", specs
        )
        for name, array in given_.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)
    else:
        assert [output["shape"] for output in parsed["outputs"]] == [list(array.shape) for array in given_.values()]


def test_numbers_may_be_nested_or_flat() -> None:
    specs = [Spec("x", "float32", (-1, 3))]
    flat = tensors({"inputs": [entry(shape=(2, 3), data=[1, 2, 3, 4.5, 5, 6])]}, specs=specs)["x"]
    nested = tensors({"inputs": [entry(shape=(2, 3), data=[[1, 2, 3], [4.5, 5, 6]])]}, specs=specs)["x"]
    np.testing.assert_array_equal(flat, nested)


def test_the_largest_whole_numbers_are_exact() -> None:
    specs = [Spec("n", "uint64", (3,))]
    largest = tensors({"inputs": [entry("n", "UINT64", (3,), data=[0, 2**63, 2**64 - 1])]}, specs=specs)["n"]
    assert largest.tolist() == [0, 2**63, 2**64 - 1]
    for wrong in ([0, 2**63, 2**64], [0, 2**63, -1], [0, 2**63, 1.0], [0.0, 1.0, 2.0]):
        with pytest.raises(RequestError, match="are not 3 values of UINT64"):
            tensors({"inputs": [entry("n", "UINT64", (3,), data=wrong)]}, specs=specs)


REFUSED: dict[str, tuple[Any, bytes, str]] = {
    "no JSON": (b"{", b"", "not as the protocol has it"),
    "no text": (b'{"inputs": [{"name": "\xff"}]}', b"", "not as the protocol has it"),
    "no inputs": ({}, b"", "missing required field `inputs`"),
    "too deep": (b'{"inputs": [], "parameters": {"a": ' + b"[" * 100_000, b"", "nested too deeply|not as the protocol"),
    "an unknown input": ({"inputs": [entry("y", data=[1, 2, 3]), N]}, b"", r"no input 'y' .*|no input 'y'"),
    "twice": ({"inputs": [N, N]}, b"", "more than one input 'n'"),
    "a missing one": ({"inputs": [N]}, b"", "input 'x' is missing"),
    "another dtype": ({"inputs": [entry(datatype="FP64", data=[1, 2, 3]), N]}, b"", r"FP64\[1, 3\], not FP32\[\?, 3\]"),
    "an unknown dtype": ({"inputs": [entry(datatype="BF16", data=[1, 2, 3]), N]}, b"", r"BF16\[1, 3\], not FP32"),
    "another shape": ({"inputs": [entry(shape=(1, 4), data=[1] * 4), N]}, b"", r"FP32\[1, 4\], not FP32\[\?, 3\]"),
    "a negative length": ({"inputs": [entry(shape=(-1, 3), data=[]), N]}, b"", ">= 0"),
    "too few numbers": ({"inputs": [entry(data=[1, 2]), N]}, b"", r"not 3 values of FP32: their shape is \[2\]"),
    "a text": ({"inputs": [entry(data=["1", "2", "3"]), N]}, b"", "not 3 values"),
    "a null": ({"inputs": [entry(data=[1, None, 3]), N]}, b"", "not 3 values"),
    "ragged": ({"inputs": [entry(shape=(2, 3), data=[[1, 2, 3], [1, 2]]), N]}, b"", "not 6 values"),
    "no list": ({"inputs": [entry(data=7), N]}, b"", "a list is needed"),
    "no data": ({"inputs": [entry(), N]}, b"", "a list is needed"),
    "too large a number": ({"inputs": [entry(data=[1, 2, 1e300]), N]}, b"", "beyond float32"),
    "a fraction of a whole": (
        {"inputs": [entry(data=[1, 2, 3]), entry("n", "UINT8", (2,), data=[1.5, 2])]},
        b"",
        "uint8 cannot hold",
    ),
    "beyond a byte": (
        {"inputs": [entry(data=[1, 2, 3]), entry("n", "UINT8", (2,), data=[256, 2])]},
        b"",
        "beyond uint8",
    ),
    "a short tensor": (
        {"inputs": [entry(parameters={"binary_data_size": 12}), N]},
        b"\0" * 8,
        "has 12 bytes, 8 are there",
    ),
    "a size that is not the shape's": (
        {"inputs": [entry(parameters={"binary_data_size": 8}), N]},
        b"\0" * 8,
        r"has 8 bytes, but FP32\[1, 3\] takes 12",
    ),
    "more than was told": ({"inputs": [entry(data=[1, 2, 3]), N]}, b"xyz", "3 bytes follow"),
    "a strange size": ({"inputs": [entry(parameters={"binary_data_size": "many"}), N]}, b"", "parameters of 'x'"),
    "an unknown region": (
        {"inputs": [entry(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 12}), N]},
        b"",
        "no region 'r'",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_does_not_fit_is_refused_with_what_would(name: str) -> None:
    value, rest, problem = REFUSED[name]
    with pytest.raises(RequestError, match=problem) as caught:
        tensors(value, rest)
    assert caught.value.status == 400


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400)))
def test_any_bytes_are_a_request_or_refused(body: bytes, header: int | None) -> None:
    with pytest.raises(RequestError) as caught:  # of 300 bytes none is a request that has all it needs
        protocol.tensors(*protocol.parse(body, header), SPECS, NoMemory())
    assert caught.value.message


def test_too_much_json_is_refused() -> None:
    with pytest.raises(RequestError, match="binary data") as caught:
        protocol.parse(b"[" * (protocol.JSON_BYTES + 1), None)
    assert caught.value.status == 413


def test_classes_are_told_as_triton_does() -> None:
    asked = protocol.Asked([], outputs=[protocol.Wanted("scores", {"classification": 2})])
    scores = np.array([[0.25, 0.5, 0.125]], np.float32)
    body = protocol.answer(asked, {}, {"scores": scores}, None, ["cat", "dog"], NoMemory())
    told = json.loads(body.parts[0])["outputs"][0]
    assert (told["datatype"], told["shape"]) == ("BYTES", [1, 2])
    assert told["data"] == ["0.500000:1:dog", "0.250000:0:cat"]


# ---- shared memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "data").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_bytes(b"x" * 100)
    (tmp_path / "shm" / "link").symlink_to("../secret")
    (tmp_path / "shm" / "folder").mkdir()
    os.mkfifo(tmp_path / "shm" / "pipe")
    return tmp_path / "shm"


def test_a_region_is_read_and_written_where_it_is(room: Path) -> None:
    regions = Regions(room)
    regions.register("mine", "/data", 10, 50)
    assert regions.read("mine", 5, 3) == bytes([15, 16, 17])
    regions.write("mine", 0, memoryview(b"abc"))
    assert (room / "data").read_bytes()[8:14] == bytes([8, 9]) + b"abc" + bytes([13])
    assert regions.status("mine") == [{"name": "mine", "key": "/data", "offset": 10, "byte_size": 50}]
    regions.unregister()
    assert regions.status() == []


@pytest.mark.parametrize(
    "key", ["/../secret", "../secret", "/link", "/folder", "/pipe", "/none", "", "/", "/.", "/a/b", "/x\0"]
)
def test_a_key_leads_nowhere_else(room: Path, key: str) -> None:
    with pytest.raises(RequestError) as caught:
        Regions(room).register("mine", key, 0, 1)
    assert caught.value.status == 400


def test_no_more_than_there_is(room: Path) -> None:
    regions = Regions(room)
    with pytest.raises(RequestError, match="has 100 bytes, 101 are asked for"):
        regions.register("mine", "/data", 51, 50)
    regions.register("mine", "/data", 50, 50)
    for offset, size in ((0, 51), (50, 1), (1 << 40, 1)):
        with pytest.raises(RequestError, match="has 50 bytes"):
            regions.read("mine", offset, size)
        with pytest.raises(RequestError, match="has 50 bytes"):
            regions.write("mine", offset, memoryview(bytes(size)))
    with pytest.raises(RequestError, match="registered already"):
        regions.register("mine", "/data", 0, 1)
    regions.unregister()


def test_memory_that_is_cut_short_is_an_error_and_no_end(room: Path) -> None:
    regions = Regions(room)
    regions.register("mine", "/data", 0, 100)
    os.truncate(room / "data", 10)
    with pytest.raises(RequestError, match="cut short"):
        regions.read("mine", 0, 100)
    with pytest.raises(RequestError, match="cut short"):
        regions.write("mine", 50, memoryview(b"abc"))
    assert (room / "data").stat().st_size == 10
    regions.unregister()


# ---- tensors of commands --------------------------------------------------------------------------------------------


def saved(array: Array, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_numpy_file_reads_as_numpy_reads_it(data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(data.draw(st.sampled_from(DTYPES)), arrays.array_shapes(min_dims=0, min_side=0)))
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    raw = saved(array, data.draw(st.sampled_from([(1, 0), (2, 0)])))
    np.testing.assert_array_equal(npy(raw), array)
    with pytest.raises(ValueError, match=r"."):
        npy(raw[: data.draw(st.integers(0, len(raw) - 1))])


def headed(text: str, data: bytes = b"") -> bytes:
    """A numpy file with this header."""
    return b"\x93NUMPY\x01\x00v\x00" + text.encode().ljust(117) + b"\n" + data


HOSTILE: dict[str, bytes] = {
    "objects": headed("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cposix\nsystem\n"),
    "a bomb": headed("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"),
    "negative": headed("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
    "code": headed("__import__('os').system('true')"),
    "another version": b"\x93NUMPY\x09\x00v\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_numpy_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        npy(HOSTILE[name])


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "x.npy").write_bytes(saved(np.ones((2, 3), np.float32)))
    (tmp_path / "out.npy").write_bytes(saved(np.ones((2, 3), np.float32)))
    (tmp_path / "in" / "link.npy").symlink_to("../out.npy")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "large.npy").write_bytes(saved(np.ones((2000, 3), np.float32)))
    os.mkfifo(tmp_path / "in" / "pipe.npy")
    return Places([str(tmp_path / "in")], 1000, 10_000)


X = [Spec("x", "float32", (-1, 3))]


def test_numbers_in_a_command(places: Places) -> None:
    for given_ in ([[1, 2, 3]], {"data": [1, 2, 3], "shape": [1, 3]}):
        np.testing.assert_array_equal(places.read({"x": given_}, X)["x"], np.array([[1, 2, 3]], np.float32))


def test_a_file_below_a_folder(places: Places, tmp_path: Path) -> None:
    found = places.read({"x": {"file": f"{tmp_path}/in/deep/x.npy"}}, X)["x"]
    np.testing.assert_array_equal(found, np.ones((2, 3)))


ESCAPES: dict[str, Callable[[Path], str]] = {
    "outside": lambda folder: f"{folder}/out.npy",
    "dots": lambda folder: f"{folder}/in/../out.npy",
    "a link": lambda folder: f"{folder}/in/link.npy",
    "a link on the way": lambda folder: f"{folder}/in/up/out.npy",
    "relative": lambda folder: "in/deep/x.npy",
    "the folder": lambda folder: f"{folder}/in",
    "a folder in it": lambda folder: f"{folder}/in/deep",
    "a pipe": lambda folder: f"{folder}/in/pipe.npy",
    "too large": lambda folder: f"{folder}/in/large.npy",
    "none": lambda folder: f"{folder}/in/none.npy",
    "a zero": lambda folder: f"{folder}/in/x\0.npy",
    "a device": lambda folder: "/dev/zero",
}


@pytest.mark.parametrize("name", list(ESCAPES))
def test_no_other_file_is_read(places: Places, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="input 'x'") as caught:
        places.read({"x": {"file": ESCAPES[name](tmp_path)}}, X)
    assert "float32[?, 3]" in caught.value.remedy


@pytest.mark.parametrize(
    "given_",
    [
        7,
        "text",
        None,
        {},
        {"file": 3},
        {"shm": "/none", "shape": [1, 3]},
        {"data": [1, 2], "shape": [1, 3]},
        [[1, "2", 3]],
    ],
)
def test_what_is_no_tensor_is_refused(places: Places, given_: Any) -> None:
    with pytest.raises(ModelError, match="input 'x'"):
        places.read({"x": given_}, X)


def test_large_numbers_do_not_travel_by_the_bus(places: Places) -> None:
    many = np.ones((500, 3), np.float32)
    with pytest.raises(ModelError, match="too many for the bus"):
        places.read({"x": many.tolist()}, X)
    with pytest.raises(ModelError, match="too many for the bus") as caught:
        places.write({"y": many}, {"y": None})
    assert '{"shm": "/name"}' in caught.value.remedy
    with pytest.raises(ModelError, match="too many for the bus"):
        places.small("decoded", "x" * 2000)
