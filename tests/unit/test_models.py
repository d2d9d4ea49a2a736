"""Bundles: what is in order is loaded, and every other folder is refused with the file and what is wrong with it."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ModelError
from appliance.inference import models

CARD = """\
name = "toy"
version = "1.2.3"
task = "reconstruction"
window = 8

[[inputs]]
name = "windows"
shape = [-1, 8]

[[outputs]]
name = "reconstruction"
shape = [-1, 8]

[training]
data = "made up"
data_sha256 = "{zeros}"
rows = 10

[evaluation]
explained = 0.5
"""
XML, WEIGHTS = b"<net></net>" * 20, bytes(range(256)) * 4


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def card(files: dict[str, bytes]) -> str:
    tables = [
        f'\n[files."{name}"]\nbytes = {len(data)}\nsha256 = "{sha256(data)}"\n' for name, data in sorted(files.items())
    ]
    return CARD.format(zeros="0" * 64) + "".join(tables)


def bundle(room: Path, files: dict[str, bytes] | None = None, text: str | None = None) -> Path:
    """A folder with the right name for what is in it."""
    files = {"model.xml": XML, "model.bin": WEIGHTS} if files is None else files
    everything = {**files, models.CARD: (card(files) if text is None else text).encode()}
    draft = room / "draft"
    draft.mkdir()
    for name, data in everything.items():
        (draft / name).write_bytes(data)
    return rename(draft)


def rename(folder: Path) -> Path:
    """The folder under the name that its content asks for now."""
    return folder.rename(folder.parent / models.hash_of(folder))


def test_a_bundle_is_loaded(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    loaded = models.load(folder)
    assert (loaded.card.name, loaded.card.version, loaded.card.window) == ("toy", "1.2.3", 8)
    assert loaded.card.evaluation == {"explained": 0.5}
    assert loaded.model == folder / "model.xml"
    assert loaded.digest == folder.name


def test_a_model_in_one_file_is_loaded(tmp_path: Path) -> None:
    assert models.load(bundle(tmp_path, {"model.tflite": b"TFL3"})).model.name == "model.tflite"


def test_a_bundle_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle(tmp_path))
    assert models.load(tmp_path / "current").card.name == "toy"


def test_the_hash_is_what_sha256sum_gives(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    listed = subprocess.run(
        "sha256sum *", shell=True, check=True, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True
    )
    assert sha256(listed.stdout) == folder.name


def test_the_shipped_bundle_is_in_order() -> None:
    loaded = models.load(models.shipped())
    assert loaded.card.task == "reconstruction"
    assert loaded.card.window == 64
    assert loaded.card.inputs[0].shape == loaded.card.outputs[0].shape == [-1, 64]
    assert loaded.card.evaluation["explained"] > loaded.card.evaluation["explained_linear_10"]
    assert sum(path.stat().st_size for path in loaded.folder.iterdir()) < 500_000


def truncate(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, size)


def link(folder: Path) -> None:
    (folder / "model.bin").rename(folder.parent / "elsewhere.bin")
    (folder / "model.bin").symlink_to(folder.parent / "elsewhere.bin")


def swap(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").mkdir()


HARM: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (truncate("model.bin", 1000), "model.bin", "truncated, 1,000 bytes instead of 1,024"),
    "emptied": (truncate("model.xml", 0), "model.xml", "truncated"),
    "longer": (truncate("model.bin", 1025), "model.bin", "longer than it should be"),
    "altered": (lambda f: (f / "model.bin").write_bytes(WEIGHTS[::-1]), "model.bin", "not what the card promises"),
    "oversized model": (truncate("model.bin", 3 * 1024**3), "model.bin", "too large, 3,221,225,472 bytes"),
    "oversized graph": (truncate("model.xml", 65 * 1024**2), "model.xml", "too large"),
    "oversized card": (truncate("card.toml", 65 * 1024), "card.toml", "too large"),
    "missing weights": (lambda f: (f / "model.bin").unlink(), "model.bin", "is missing"),
    "missing graph": (lambda f: (f / "model.xml").unlink(), "model.xml", "is missing"),
    "missing card": (lambda f: (f / "card.toml").unlink(), "card.toml", "is missing"),
    "another file": (lambda f: (f / "run.sh").write_text("x"), "run.sh", "is no part of a bundle"),
    "an unpromised file": (lambda f: (f / "model.onnx").write_text("x"), "", "holds model.xml and model.onnx"),
    "a link": (link, "model.bin", "is not a plain file"),
    "a folder": (swap, "model.bin", "is not a plain file"),
    "a binary card": (lambda f: (f / "card.toml").write_bytes(b"\xff\xfe"), "card.toml", "not text in UTF-8"),
    "a deep card": (lambda f: (f / "card.toml").write_text("a = " + "[" * 50_000), "card.toml", "nested too deeply"),
    "a card of another form": (lambda f: (f / "card.toml").write_text("a = "), "card.toml", "Invalid value"),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_harm_is_named(tmp_path: Path, harm: str) -> None:
    do, name, what = HARM[harm]
    folder = bundle(tmp_path)
    do(folder)
    with pytest.raises(ModelError) as caught:
        models.load(folder)
    assert str(folder / name) in caught.value.message
    assert what in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('name = "toy"', 'nmae = "toy"', "Did you mean 'name'"),
        ('version = "1.2.3"', 'version = "latest"', "version"),
        ("window = 8", "window = -8", "window"),
        ("window = 8", 'window = "8"', "window"),
        ("rows = 10", "rows = 10\nrats = 2", "training.rats"),
        ("explained = 0.5", 'explained = "good"', "evaluation"),
        ("shape = [-1, 8]", "shape = []", "shape"),
        ("0" * 64, "0" * 63, "data_sha256"),
        ('task = "reconstruction"\n', "", "task"),
    ],
)
def test_a_wrong_key_of_the_card_is_named(tmp_path: Path, old: str, new: str, what: str) -> None:
    files = {"model.xml": XML, "model.bin": WEIGHTS}
    text = card(files)
    assert old in text
    folder = bundle(tmp_path, files, text.replace(old, new))
    with pytest.raises(ModelError, match=re.escape(what)) as caught:
        models.load(folder)
    assert str(folder / "card.toml") in caught.value.message


def test_a_promised_file_that_is_missing_is_named(tmp_path: Path) -> None:
    files = {"model.tflite": b"TFL3"}
    text = card({**files, "model.bin": b"x"})
    with pytest.raises(ModelError, match=r"model\.bin: is missing"):
        models.load(bundle(tmp_path, files, text))


def test_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    other = folder.rename(tmp_path / "pump-model")
    with pytest.raises(ModelError, match=folder.name):
        models.load(other)


def test_a_forged_card_needs_another_name(tmp_path: Path) -> None:
    """A file and its promise changed together are consistent, but they are another bundle."""
    folder = bundle(tmp_path)
    (folder / "model.bin").write_bytes(WEIGHTS[::-1])
    text = (folder / "card.toml").read_text().replace(sha256(WEIGHTS), sha256(WEIGHTS[::-1]))
    (folder / "card.toml").write_text(text)
    with pytest.raises(ModelError, match="not the hash of its files"):
        models.load(folder)
    assert models.load(rename(folder)).card.name == "toy"


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match=f"{name}: there is no such folder"):
        models.load(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as room:
        folder = bundle(Path(room))
        path = folder / data.draw(st.sampled_from(["card.toml", "model.bin", "model.xml"]))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(ModelError, match=re.escape(str(folder))):
            models.load(folder)


def test_a_copy_of_the_shipped_bundle_is_in_order(tmp_path: Path) -> None:
    ours = models.shipped()
    copy = Path(shutil.copytree(ours, tmp_path / ours.name))
    assert models.load(copy).card == models.load(ours).card
