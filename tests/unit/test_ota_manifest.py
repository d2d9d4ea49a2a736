"""What targets say of themselves, the time, bundles as one file."""

import io
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.inference import models
from ota import bundle, manifest
from ota.errors import ManifestError
from ota.manifest import Bundle, Campaign, Delta, Host, Image, Needs
from ota.times import Floor, StoredTimes

A, B = "a" * 64, "b" * 64
CONTENTS = [
    Bundle("pump", "1.2.0", A, 10, Needs("1.0", 5, ("npu",))),
    Delta("pump", "1.2.0", A, B, 10, 7),
    Campaign("pump"),
    Image("box", "2.0"),
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: type(content).__name__)
def test_what_is_written_is_read(content: manifest.Content) -> None:
    plain = msgspec.json.decode(msgspec.json.encode(manifest.custom(content)))
    assert manifest.read(plain) == content
    assert manifest.is_path(manifest.path_of(content, "plant-a"))


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json)
def test_anything_else_is_refused_in_our_own_words(plain: object) -> None:
    try:
        found = manifest.read({manifest.KEY: plain})
    except ManifestError:
        return
    assert found is None


@given(st.sampled_from(CONTENTS), st.sampled_from(["name", "version", "bundle", "base", "needs"]), json)
def test_a_field_of_another_kind_never_passes_unseen(content: manifest.Content, field: str, value: object) -> None:
    plain = manifest.custom(content)
    plain[manifest.KEY][field] = value
    try:
        found = manifest.read(plain)
    except ManifestError:
        return
    assert found is not None
    assert not hasattr(found, field) or msgspec.to_builtins(getattr(found, field)) is not None


def test_what_came_later_is_ignored_except_needs() -> None:
    plain = manifest.custom(CONTENTS[0])
    plain[manifest.KEY]["colour"] = "red"
    assert manifest.read(plain) == CONTENTS[0]
    plain[manifest.KEY]["needs"]["colour"] = "red"
    with pytest.raises(ManifestError, match="colour"):
        manifest.read(plain)
    assert manifest.read({manifest.KEY: {"kind": "song"}}) is None
    assert manifest.read(None) is None


def test_it_is_bounded() -> None:
    plain = manifest.custom(CONTENTS[0])
    plain[manifest.KEY]["colour"] = "x" * manifest.LIMIT
    with pytest.raises(ManifestError, match="more than"):
        manifest.read(plain)


def test_needs_are_named() -> None:
    assert manifest.missing(Needs(), Host("0.1", 0)) == []
    lacks = manifest.missing(Needs("1.10", 9, ("npu", "gpu")), Host("1.9", 8, frozenset({"gpu"})))
    assert lacks == ["Millwright 1.10 (this is 1.9)", "9 bytes of memory (there are 8)", "npu"]


@given(st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=4), min_size=1))
def test_versions_have_an_order(versions: list[list[int]]) -> None:
    texts = [".".join(map(str, version)) for version in versions]
    padded = [version + [0] * (4 - len(version)) for version in versions]
    by_text = sorted(range(len(texts)), key=lambda at: manifest.order(texts[at]))
    assert [padded[at] for at in by_text] == sorted(padded)


@given(st.text(max_size=300))
def test_a_path_is_one_on_every_filesystem(path: str) -> None:
    if manifest.is_path(path):
        assert path.isascii()
        assert path.isprintable()
        assert not {"", ".", ".."} & set(path.split("/"))


# ---- bundles as one file --------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(files=st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=5))
def test_a_pack_gives_the_bundle_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    here = tmp_path_factory.mktemp("pack")
    (old := here / "old").mkdir()
    for name, content in files.items():
        (old / name).write_bytes(content)
    bundle.pack(old, here / "packed", level=1)
    bundle.unpack(here / "packed", here / "new", bundle.size(old))
    assert {path.name: path.read_bytes() for path in (here / "new").iterdir()} == files
    assert bundle.digest(here / "new") == bundle.digest(old) == models.hash_of(old)


def packed(listed: object, content: bytes, magic: bytes = bundle.MAGIC) -> bytes:
    head = msgspec.json.encode(listed)
    return magic + len(head).to_bytes(4, "little") + head + zstandard.compress(content)


@pytest.mark.parametrize(
    "data",
    [
        packed([["../x", 1]], b"x"),
        packed([["/x", 1]], b"x"),
        packed([["a", 1], ["a", 1]], b"xx"),
        packed([["b", 1], ["a", 1]], b"xx"),
        packed([], b""),
        packed([["a", -1]], b""),
        packed([["a", 1 << 50]], b""),
        packed([["a", 2]], b"x"),
        packed([["a", 1]], b"xx"),
        packed([["a", 1]], b"x") + b"x",
        packed([["a", 1]], b"x", b"MWPACK99"),
        packed({"a": 1}, b"x"),
        packed([["a", 1]], b"x")[:-3],
        bundle.MAGIC + b"\xff\xff\xff\xff",
        bundle.MAGIC + b"\1\0\0\0[" + zlib.compress(b"x"),
        b"",
    ],
)
def test_a_hostile_pack_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "packed").write_bytes(data)
    with pytest.raises(ManifestError):
        bundle.unpack(tmp_path / "packed", tmp_path / "new", 1 << 20)
    assert {path.name for path in tmp_path.iterdir()} <= {"packed", "new"}


def test_a_bomb_stops_at_what_it_says(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(stream, closefd=False) as writer:
        writer.write(bytes(50 << 20))
    head = msgspec.json.encode([["a", 1000]])
    (tmp_path / "packed").write_bytes(bundle.MAGIC + len(head).to_bytes(4, "little") + head + stream.getvalue())
    with pytest.raises(ManifestError, match="more than its files"):
        bundle.unpack(tmp_path / "packed", tmp_path / "new", 1000)
    assert (tmp_path / "new" / "a").stat().st_size == 1000


@pytest.mark.parametrize("what", ["a link", "a folder", "a name"])
def test_a_bundle_is_a_flat_folder(tmp_path: Path, what: str) -> None:
    (folder := tmp_path / "bundle").mkdir()
    if what == "a link":
        (folder / "model").symlink_to("/etc/passwd")
    elif what == "a folder":
        (folder / "model").mkdir()
    else:
        (folder / "a b").touch()
    with pytest.raises(ManifestError):
        bundle.digest(folder)


# ---- time -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.sampled_from("ab"), st.floats(0, 1e9), st.floats(0, 1e3)), max_size=20),
)
@example([(0.0, "a", 0.0, 1.2407037724472616), (256.0, "a", 0.0, 255.0)])  # rounded away
@example([(0.0, "a", 0.0, 0.0), (6.0, "a", 0.0, 6.0)])  # known to this process already, and not to the next
def test_time_never_goes_back_under_the_same_witness(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, str, float, float]]
) -> None:
    file = tmp_path_factory.mktemp("times") / "floor"
    elapsed, before, last = [0.0], 0.0, ""
    times = StoredTimes(file, 5.0, lambda: 0.0, lambda: elapsed[0])
    for at, witness, now, passed in steps:
        elapsed[0] += passed
        times.learn(at, witness)
        if witness == last:
            assert times.now(witness) >= before
        assert times.now(witness) >= max(at, 5.0)
        assert StoredTimes(file, 5.0, lambda now=now: now, lambda: elapsed[0]).now(witness) >= max(at, now)
        before, last = times.now(witness), witness


def test_another_witness_forgets_what_the_first_one_said(tmp_path: Path) -> None:
    times = StoredTimes(tmp_path / "floor", 5.0, lambda: 7.0, lambda: 0.0)
    times.learn(4e9, "stolen")
    assert times.now("stolen") == 4e9
    assert times.now("new") == 7.0
    times.learn(8.0, "new")
    assert msgspec.json.decode((tmp_path / "floor").read_bytes(), type=Floor) == Floor(8.0, "new")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"at_s": "x", "witness": ""}'])
def test_a_floor_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "floor").write_bytes(data)
    assert StoredTimes(tmp_path / "floor", 5.0, lambda: 0.0).now("any") == 5.0
