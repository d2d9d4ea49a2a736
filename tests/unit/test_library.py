"""The library of models: what comes in, what names point to, what is refused, what a cut-off change leaves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from appliance.config.document import Document
from appliance.errors import ModelError, StoreError
from appliance.inference import cards, models
from appliance.inference.library import Library
from appliance.inference.models import Bundle, Card, File, Given, Port

CARD = 'name = "{name}"\nversion = "{version}"\ntask = "none"\n'
PORTS = ([Port("x", [-1, 4])], [Port("y", [-1, 2])])


def bundle(folder: Path, name: str = "toy", version: str = "1.0.0", content: bytes = b"TFL3") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(content)
    cards.write(folder, Card(name, version, "none", *PORTS, files={}))
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "models")


def test_the_first_of_a_name_is_current(library: Library, tmp_path: Path) -> None:
    entry, new = library.add(bundle(tmp_path / "one"))
    assert new
    assert entry.current
    assert entry.folder == library.root / entry.digest == library.current("toy")
    assert models.load(entry.folder).card.name == "toy"


def test_adding_it_again_changes_nothing(library: Library, tmp_path: Path) -> None:
    first, _ = library.add(bundle(tmp_path / "one"))
    again, new = library.add(tmp_path / "one")
    assert (again, new) == (first, False)
    assert [entry.title for entry in library.entries()] == ["toy@1.0.0"]


def test_names_move_and_move_back(library: Library, tmp_path: Path) -> None:
    old, _ = library.add(bundle(tmp_path / "old"))
    new, _ = library.add(bundle(tmp_path / "new", version="1.10.0", content=b"new"))
    assert not new.current
    library.use(new)
    assert library.current("toy") == new.folder
    assert library.previous("toy").folder == old.folder
    library.use(library.previous("toy"))
    assert library.current("toy") == old.folder
    assert library.previous("toy").folder == new.folder


def test_links_are_relative_so_that_the_folder_may_move(library: Library, tmp_path: Path) -> None:
    library.add(bundle(tmp_path / "one"))
    moved = library.root.rename(tmp_path / "elsewhere")
    assert Library(moved).find("toy").current


def test_references(library: Library, tmp_path: Path) -> None:
    old, _ = library.add(bundle(tmp_path / "old"))
    new, _ = library.add(bundle(tmp_path / "new", version="1.10.0", content=b"new"))
    assert library.find("toy").digest == old.digest  # the current one
    assert library.find("toy@1.10.0").digest == new.digest
    assert library.find(new.digest[:8]).digest == new.digest
    for unknown, remedy in {"toi": "Did you mean 'toy'", "toy@3.0.0": "toy@1.0.0, toy@1.10.0", "abcdef": "toy"}.items():
        with pytest.raises(ModelError, match=f"no model '{unknown}'") as caught:
            library.find(unknown)
        assert remedy in caught.value.remedy


def test_versions_are_ordered_as_numbers(library: Library, tmp_path: Path) -> None:
    for version in ("1.10.0", "1.9.0", "1.2.30"):
        library.add(bundle(tmp_path / version, version=version, content=version.encode()))
    assert [entry.card.version for entry in library.entries()] == ["1.2.30", "1.9.0", "1.10.0"]


def test_the_current_one_of_several_is_not_removed(library: Library, tmp_path: Path) -> None:
    old, _ = library.add(bundle(tmp_path / "old"))
    new, _ = library.add(bundle(tmp_path / "new", version="2.0.0", content=b"new"))
    with pytest.raises(ModelError, match=r"toy@1\.0\.0 is in use") as caught:
        library.remove(old)
    assert "millwright models use toy@2.0.0" in caught.value.remedy
    library.use(new)
    library.remove(old)
    assert [entry.title for entry in library.entries()] == ["toy@2.0.0"]
    with pytest.raises(ModelError, match="no previous"):
        library.previous("toy")
    library.remove(new)
    assert library.entries() == []
    assert library.current("toy") is None


def test_another_model_of_the_same_version_is_refused(library: Library, tmp_path: Path) -> None:
    library.add(bundle(tmp_path / "one"))
    with pytest.raises(ModelError, match=r"another toy@1\.0\.0"):
        library.add(bundle(tmp_path / "two", content=b"other"))
    assert len(library.entries()) == 1


def test_what_the_check_refuses_leaves_nothing(library: Library, tmp_path: Path) -> None:
    def refuse(_: Bundle) -> None:
        raise ModelError("not this one")

    with pytest.raises(ModelError, match="not this one"):
        library.add(bundle(tmp_path / "one"), refuse)
    assert library.entries() == []
    assert sorted(path.name for path in library.root.iterdir()) == ["lock"]


def test_the_shipped_model_is_current_until_another_is_used(tmp_path: Path) -> None:
    shipped = bundle(tmp_path / "draft", name="default")
    shipped = shipped.rename(tmp_path / models.hash_of(shipped))
    library = Library(tmp_path / "models", shipped)
    assert library.find("default").shipped
    newer, _ = library.add(bundle(tmp_path / "new", name="default", version="1.1.0", content=b"new"))
    assert library.current("default") == shipped
    library.use(newer)
    assert library.current("default") == newer.folder
    library.use(library.previous("default"))
    assert library.current("default") == shipped
    with pytest.raises(ModelError, match="part of the program"):
        library.remove(library.find("default@1.0.0"))


def linked(folder: Path) -> None:
    (folder / "model.tflite").rename(folder.parent / "elsewhere")
    (folder / "model.tflite").symlink_to("../elsewhere")


def another_key(folder: Path) -> None:
    (folder / "card.toml").write_text("colour = 3\n" + (folder / "card.toml").read_text())


HARM: dict[str, Callable[[Path], object]] = {
    "is not a plain file": linked,
    "is no part of a bundle": lambda folder: (folder / "run.sh").write_text("rm -rf /"),
    "truncated": lambda folder: (folder / "model.tflite").write_bytes(b"T"),
    "its content is not": lambda folder: (folder / "model.tflite").write_bytes(b"LIAR"),
    "model.tflite: is missing": lambda folder: (folder / "model.tflite").unlink(),
    "there is no such key": another_key,
    "too large": lambda folder: os.truncate(folder / "card.toml", 100_000),
}


@pytest.mark.parametrize("problem", list(HARM))
def test_a_harmed_bundle_is_refused_and_leaves_nothing(library: Library, tmp_path: Path, problem: str) -> None:
    HARM[problem](bundle(tmp_path / "one"))
    with pytest.raises(ModelError, match=problem) as caught:
        library.add(tmp_path / "one")
    assert caught.value.remedy
    assert str(library.root) not in caught.value.message
    assert library.entries() == []


def test_a_damaged_bundle_does_not_hide_the_others(library: Library, tmp_path: Path) -> None:
    library.add(bundle(tmp_path / "good"))
    bad, _ = library.add(bundle(tmp_path / "bad", name="bad", content=b"bad"))
    (bad.folder / "card.toml").write_text("name = ")
    entries, problems = library.survey()
    assert [entry.title for entry in entries] == ["toy@1.0.0"]
    assert [str(bad.folder) in problem.message for problem in problems] == [True]


def test_what_a_cut_off_change_left_is_cleared(library: Library, tmp_path: Path) -> None:
    library.add(bundle(tmp_path / "one"))
    left = library.root / "arriving" / "half"
    left.mkdir(parents=True)
    (left / "model.tflite").write_bytes(b"half a file")
    assert len(library.entries()) == 1  # nobody sees it
    library.add(bundle(tmp_path / "two", version="2.0.0", content=b"two"))
    assert not left.exists()


def test_a_name_that_points_to_nothing_is_no_model(library: Library, tmp_path: Path) -> None:
    """A removal that is cut off between the names and the bundle."""
    entry, _ = library.add(bundle(tmp_path / "one"))
    shutil.rmtree(entry.folder)
    assert library.current("toy") is None
    again, _ = library.add(tmp_path / "one")
    assert again.current


def test_every_change_has_another_stamp(library: Library, tmp_path: Path) -> None:
    stamps = [library.stamp()]
    old, _ = library.add(bundle(tmp_path / "old"))
    stamps.append(library.stamp())
    new, _ = library.add(bundle(tmp_path / "new", version="2.0.0", content=b"new"))
    stamps.append(library.stamp())
    library.use(new)
    stamps.append(library.stamp())
    library.remove(old)
    stamps.append(library.stamp())
    assert len(set(stamps)) == len(stamps)
    assert library.stamp() == stamps[-1]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StoreError, match="models"):
        Library(tmp_path / "models").add(bundle(tmp_path / "one"))


# ---- cards ----------------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
ports = st.builds(
    Port,
    name=text.filter(bool),
    shape=st.lists(st.integers(-1, 1000), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "uint8", "bool"]),
    given=st.none() | st.builds(Given, dtype=st.just("uint8"), mean=st.lists(st.floats(allow_nan=False), max_size=3)),
)
plain = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
whole_cards = st.builds(
    Card,
    name=st.just("toy"),
    version=st.just("1.2.3"),
    task=st.just("none"),
    inputs=st.lists(ports, min_size=1, max_size=2),
    outputs=st.lists(ports, min_size=1, max_size=2),
    files=st.dictionaries(text, st.builds(File, bytes=st.just(1), sha256=st.just("0" * 64)), max_size=2),
    decoder=st.dictionaries(text, plain, max_size=4),
    description=text,
    evaluation=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(whole_cards)
def test_a_card_reads_as_it_was_written(card: Card) -> None:
    document = Document("card.toml", cards.text_of(card))
    assert document.into(Card, document.tables) == card
