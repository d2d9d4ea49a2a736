"""`millwright models` where nothing runs: add, list, show, use, remove, bench; and quantisation on a real network."""

import json
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from appliance import computing
from appliance.__main__ import main
from appliance.config.load import load
from appliance.inference import models
from appliance.inference.library import Library
from appliance.store.frame import Part
from appliance.store.history import Commit, History
from tests import bundles
from tools.training import digits
from tools.training.tflite import Draft

EPOCHS = 3
SECOND = 1_000_000_000  # ns
DAY = 86_400 * SECOND


SHIPPED = models.load(models.shipped()).card


class Box:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "box.toml").write_text(f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n')

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        code = main(["--config", str(self.folder / "box.toml"), "models", *map(str, words)])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def json(self, *words: str | Path) -> Any:
        code, out, err = self.run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    @property
    def library(self) -> Library:
        return Library(self.folder / "state" / "models")


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Box(tmp_path, capsys)


def test_a_bundles_life(box: Box) -> None:
    added = box.json("add", bundles.classifier(box.folder / "one"))
    assert (added["name"], added["version"], added["current"], added["new"]) == ("toy", "1.0.0", True, True)
    code, out, _ = box.run("add", bundles.classifier(box.folder / "two", version="2.0.0", factor=2.0))
    assert code == 0
    assert "millwright models use toy@2.0.0" in out
    assert box.run("remove", "toy@1.0.0")[0] == 1  # it is in use
    assert box.json("use", "toy@2.0.0")["current"]
    assert box.json("use", "toy", "--previous")["version"] == "1.0.0"
    box.json("use", "toy@2.0.0")
    assert box.json("remove", "toy@1.0.0")["version"] == "1.0.0"
    code, out, _ = box.run("list")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["toy", "2.0.0", "classifier", "CPU"],
        [SHIPPED.name, SHIPPED.version, "reconstruction", "CPU"],
    ]


@pytest.mark.parametrize(
    ("setting", "effect"),
    [
        ("", ""),
        ('[detect]\nmodel = "toy"\n', "the detector changes over to it within seconds, where it runs"),
        ('[detect]\nmodel = "toy@1.0.0"\n', "the detector keeps toy@1.0.0, which `detect.model` names"),
    ],
)
def test_use_says_when_the_detector_takes_it_up(box: Box, setting: str, effect: str) -> None:
    for version in ("1.0.0", "2.0.0"):
        box.json("add", bundles.classifier(box.folder / version, version=version, factor=float(version[0])))
    with (box.folder / "box.toml").open("a") as file:
        file.write(setting)
    code, out, _ = box.run("use", "toy@2.0.0")
    assert code == 0
    assert effect in out
    assert ("->" in out) == bool(effect)


def test_an_onnx_file_is_added_shown_and_measured(box: Box) -> None:
    """tests/integration/test_infer.py serves it to Triton's client."""
    card = box.folder / "mine.toml"
    card.write_text(bundles.CLASSIFIER.format(name="mine", version="1.0.0"))
    added = box.json("add", bundles.onnx(box.folder / "net.onnx"), "--card", card)
    assert (added["name"], added["new"]) == ("mine", True)
    shown = box.json("show", "mine")["card"]
    assert (shown["inputs"][0]["name"], shown["inputs"][0]["shape"]) == ("x", [-1, 4])
    (device,) = box.json("bench", "mine", "--seconds", "0.02", "--device", "CPU")["devices"]
    assert device["device"] == "CPU"
    assert all(figure > 0 for figure in device["rows_per_s"].values())


def test_a_models_file_with_a_card(box: Box) -> None:
    folder = bundles.classifier(box.folder / "one")
    (folder / "card.toml").unlink()
    card = box.folder / "mine.toml"
    card.write_text(bundles.CLASSIFIER.format(name="mine", version="1.2.3"))
    assert box.json("add", folder / "model.xml", "--card", card)["name"] == "mine"
    shown = box.json("show", "mine")["card"]
    assert shown["inputs"] == [
        {"name": "x", "shape": [-1, 4], "dtype": "float32", "scale": "", "layout": "", "given": None}
    ]
    code, out, _ = box.run("show", "mine")
    assert code == 0
    assert 'labels = ["a", "b", "c"]' in out


@pytest.mark.parametrize("backend", ["", "litert"])
def test_a_tflite_file_of_either_backend(box: Box, backend: str) -> None:
    draft = Draft("x", (-1, 4))
    draft.dense(bundles.WEIGHTS, np.zeros(3, np.float32), rectified=False)
    draft.write("scores", box.folder / "net.tflite")
    card = box.folder / "mine.toml"
    card.write_text(f'backend = "{backend}"\n' + bundles.CLASSIFIER.format(name="mine", version="1.0.0"))
    box.json("add", box.folder / "net.tflite", "--card", card)
    shown = box.json("show", "mine")["card"]
    assert (shown["backend"], shown["inputs"][0]["shape"]) == (backend, [-1, 4])
    assert "rows_per_s" in box.json("bench", "mine", "--seconds", "0.02", "--device", "CPU")["devices"][0]


def test_a_file_needs_a_card(box: Box) -> None:
    code, _, err = box.run("add", bundles.classifier(box.folder / "one") / "model.xml")
    assert code == 1
    assert 'task = "classifier"' in err  # what to write


REFUSED: dict[str, tuple[str, str]] = {
    "tensor": ('[[inputs]]\nname = "y"\nshape = [-1, 4]\n', "inputs 'y': the model has none of that name"),
    "shape": ('[[inputs]]\nname = "x"\nshape = [-1, 5]\n', r"inputs 'x': is float32[?, 4], not float32[?, 5]"),
    "dtype": ('[[inputs]]\nname = "x"\nshape = [-1, 4]\ndtype = "int8"\n', "not int8[?, 4]"),
    "labels": ("", "2 names for 3 classes"),
    "decoder": ("", "decoder.colour: there is no such key"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_card_that_is_not_the_models_is_refused(box: Box, name: str) -> None:
    inputs, problem = REFUSED[name]
    decoder = {"labels": 'labels = ["a", "b"]', "decoder": 'colour = "red"'}.get(name, "")
    card = box.folder / "mine.toml"
    card.write_text(f'name = "mine"\nversion = "1.0.0"\ntask = "classifier"\n{inputs}\n[decoder]\n{decoder}\n')
    code, _, err = box.run("add", bundles.classifier(box.folder / "one") / "model.xml", "--card", card)
    assert code == 1
    assert problem in err
    assert box.library.entries() == []


def test_a_hostile_model_is_refused(box: Box) -> None:
    folder = bundles.classifier(box.folder / "one")
    text = (folder / "model.xml").read_text()
    (folder / "model.xml").write_text(text.replace('type="MatMul"', 'type="Explode"'))
    (folder / "card.toml").unlink()
    card = box.folder / "mine.toml"
    card.write_text(bundles.CLASSIFIER.format(name="mine", version="1.0.0"))
    code, _, err = box.run("add", folder / "model.xml", "--card", card)
    assert code == 1
    assert "model.xml" in err
    assert box.library.entries() == []


def test_what_the_configuration_names_is_not_removed(box: Box) -> None:
    box.json("add", bundles.classifier(box.folder / "one"))
    with (box.folder / "box.toml").open("a") as file:
        file.write('[infer]\nmodels = ["toy"]\n')
    code, _, err = box.run("remove", "toy")
    assert code == 1
    assert "`infer.models` names it" in err


def test_what_the_detector_uses_is_not_removed(box: Box) -> None:
    box.json("add", bundles.windows(box.folder / "one"))
    with (box.folder / "box.toml").open("a") as file:
        file.write('[detect]\nmodel = "windows"\n')
    code, _, err = box.run("remove", "windows")
    assert code == 1
    assert "`detect.model` names it" in err
    config, _ = load(box.folder / "box.toml")
    assert computing.detector_folder(config) == box.library.current("windows")


def test_an_unknown_model_is_told_with_the_nearest(box: Box) -> None:
    box.json("add", bundles.classifier(box.folder / "one"))
    for verb in ("show", "use", "remove", "bench"):
        code, _, err = box.run(verb, "toi")
        assert code == 1
        assert "Did you mean 'toy'?" in err


def test_bench_tells_latency_and_throughput_of_each_device(box: Box) -> None:
    box.json("add", bundles.classifier(box.folder / "one"))
    told = box.json("bench", "toy", "--seconds", "0.05")
    cpu = next(one for one in told["devices"] if one["device"] == "CPU")
    latency = cpu["latency_ms"]
    assert 0 < latency["median"] <= latency["p90"] <= latency["p99"] <= latency["longest"]
    assert set(cpu["rows_per_s"]) == {"1", "16"}
    assert all(speed > 0 for speed in cpu["rows_per_s"].values())
    code, out, _ = box.run("bench", box.folder / "one", "--seconds", "0.05", "--batch", "4", "--device", "CPU")
    assert code == 0
    assert "ROWS/S AT 4" in out
    code, _, err = box.run("bench", "toy", "--device", "TPU")
    assert code == 1
    assert "there is no device 'TPU'" in err


def test_serving_needs_a_running_millwright(box: Box) -> None:
    code, _, err = box.run("load", "toy")
    assert code == 3
    assert "no Millwright answers" in err


# ---- quantisation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert digits.build(folder, EPOCHS) > 0.93
    return folder


def test_a_quarter_of_the_size_at_no_less_than_99_percent_of_the_accuracy(box: Box, trained: Path) -> None:
    small = box.folder / "small"
    told = box.json(
        "quantize", trained / "digits", small, "--data", trained / "train.npz", "--holdout", trained / "test.npz"
    )
    assert told["size"] < 0.27  # the graph's text is most of what is beyond the quarter
    assert (small / "model.bin").stat().st_size < 0.255 * (trained / "digits" / "model.bin").stat().st_size
    assert told["after"]["accuracy"] >= 0.99 * told["before"]["accuracy"]
    assert told["kept"] == round(told["after"]["accuracy"] / told["before"]["accuracy"], 5)
    assert told["judged_by"] == digits.HELD_OUT
    added = box.json("add", small)
    assert (added["name"], added["version"]) == ("digits", "1.0.1")
    card = box.json("show", "digits")["card"]
    assert card["evaluation"]["accuracy"] == told["after"]["accuracy"]
    assert card["inputs"][0]["given"]["dtype"] == "uint8"


def test_what_costs_too_much_is_not_written(box: Box, trained: Path) -> None:
    code, _, err = box.run(
        *("quantize", trained / "digits", box.folder / "small", "--data", trained / "test.npz", "--rows", "8"),
        *("--at-least", "1.5"),
    )
    assert code == 1
    assert "of the accuracy is left, not 150.00%" in err
    assert not (box.folder / "small").exists()


def test_a_bare_file_is_quantised_to_a_file(box: Box, trained: Path) -> None:
    with np.load(trained / "test.npz") as held:
        rows = (held["image"] / np.float32(16)).astype(np.float32).transpose(0, 3, 1, 2)
    np.save(box.folder / "rows.npy", rows)
    out = box.folder / "small.xml"
    told = box.json(
        "quantize", trained / "digits" / "model.xml", out, "--data", box.folder / "rows.npy", "--rows", "50"
    )
    assert told["energy"] > 0.99
    assert ov.Core().read_model(out).input(0).get_any_name() == "image"


def test_windows_of_a_table_calibrate_a_model_of_windows(box: Box) -> None:
    rng = np.random.default_rng(5)
    time = np.arange(2000)
    table = np.stack([time, np.sin(time / 9) + rng.normal(0, 0.1, 2000), np.full(2000, 3.0)], axis=1)
    lines = ["time,flow,still", *(",".join(f"{value:.4f}" for value in row) for row in table)]
    (box.folder / "rows.csv").write_text("\n".join([*lines, "2000,gap,3"]))
    told = box.json(
        "quantize", bundles.windows(box.folder / "one"), box.folder / "small", "--data", box.folder / "rows.csv"
    )
    assert told["energy"] > 0.99
    card = models.load(box.folder / "small", named=False).card
    assert (card.task, card.version, card.window) == ("reconstruction", "1.0.10", 16)
    assert card.evaluation["energy"] == told["energy"]


def test_recorded_history_calibrates_a_model_of_windows(box: Box) -> None:
    history = History(box.folder / "state" / "history.sqlite", 64 << 20, 365 * DAY)
    history.path.parent.mkdir()
    history.open()
    times = array("q", range(DAY * 20_000, DAY * 20_000 + 3000 * SECOND, SECOND))
    values = array("d", [value for at in range(3000) for value in (np.sin(at / 7), 3.0)])
    history.append(
        Commit([("line1/pump", Part(("flow", "still"), times.tobytes(), values.tobytes()))], []), DAY * 20_001
    )
    history.close()
    folder = bundles.windows(box.folder / "one")
    told = box.json("quantize", folder, box.folder / "small", "--data", "history", "--rows", "40")
    assert told["calibrated_with"] <= 40
    assert told["energy"] > 0.99
    code, _, err = box.run("quantize", bundles.classifier(box.folder / "two"), box.folder / "s", "--data", "history")
    assert code == 1
    assert "the model takes no windows of one" in err


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("nothing.npz", "is no numpy file"),
        ("history", "history"),
        ("other.npz", "has no 'image'"),
        ("shape.npz", r"'image' is uint8\[3, 8, 8\]"),
        ("one.npz", "has one sample"),
    ],
)
def test_data_that_do_not_fit_are_refused(box: Box, trained: Path, data: str, problem: str) -> None:
    np.savez(box.folder / "other.npz", picture=np.zeros((3, 8, 8, 1), np.uint8))
    np.savez(box.folder / "shape.npz", image=np.zeros((3, 8, 8), np.uint8))
    np.savez(box.folder / "one.npz", image=np.zeros((1, 8, 8, 1), np.uint8))
    source = data if data == "history" else box.folder / data
    code, _, err = box.run("quantize", trained / "digits", box.folder / "small", "--data", source)
    assert code == 1
    assert problem.replace("\\", "") in err


def test_without_nncf_the_remedy_is_told(box: Box, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    code, _, err = box.run(
        "quantize", trained / "digits", box.folder / "small", "--data", trained / "test.npz", "--rows", "5"
    )
    assert code == 1
    assert "NNCF, which quantises, is not installed" in err
    assert "tools/setup trainer" in err
