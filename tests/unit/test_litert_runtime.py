"""Which module LiteRT's backend takes. Stand-ins for the runtimes: they show the order of the imports and what is said
of a runtime that does not work here, not that `tflite_runtime` computes."""

import sys
from pathlib import Path

import pytest

from appliance.errors import DeviceError
from appliance.inference.backends import litert

SCHEMA = "import sys\nclass Interpreter:\n    def __init__(self, model_path, num_threads):\n        raise {error}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where modules are looked for first; none that was imported before is remembered, or left behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] in litert.RUNTIMES]:
        monkeypatch.delitem(sys.modules, name)
    for name in litert.RUNTIMES:  # so that what the test imports is forgotten at its end
        for module in (name, f"{name}.interpreter"):
            monkeypatch.setitem(sys.modules, module, None)
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def stand_in(place: Path, module: str, version: str, error: str = "RuntimeError('no model')") -> None:
    distribution = litert.RUNTIMES[module]
    (place / module).mkdir()
    (place / module / "__init__.py").write_text("")
    (place / module / "interpreter.py").write_text(SCHEMA.format(error=error))
    told = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)


def version() -> str:
    return litert.create(litert.Settings()).version


def test_litert_comes_before_its_predecessor(place: Path) -> None:
    stand_in(place, "ai_edge_litert", "9.0")
    stand_in(place, "tflite_runtime", "8.0")
    assert version() == "9.0"


def test_its_predecessor_is_taken_where_there_is_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ai_edge_litert")
    stand_in(place, "tflite_runtime", "8.0")
    assert version() == "8.0"


def test_without_either_the_remedy_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in litert.RUNTIMES:
        without(monkeypatch, module)
    with pytest.raises(DeviceError, match="LiteRT is not installed") as caught:
        version()
    assert "tools/setup litert" in caught.value.remedy


def test_a_runtime_that_was_built_for_another_numpy_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ai_edge_litert")
    stand_in(place, "tflite_runtime", "2.14.0", "SystemError('returned a result with an exception set')")
    (place / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(DeviceError, match=r"tflite-runtime 2\.14\.0 does not work with numpy") as caught:
        litert.create(litert.Settings()).compile(place / "model.tflite", "CPU")
    assert "built for numpy 2" in caught.value.remedy
