"""The vault's file as bytes: what is read is what was written, and whatever else stands there is refused by name."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import SealError, VaultError
from appliance.vault import layout
from appliance.vault.canonical import Reader
from appliance.vault.layout import Binding, Head, Index, Namespace, Purpose, Root, Wrapped
from appliance.vault.port import Entry
from appliance.vault.recovery import Recipient
from appliance.vault.secret import Secret

numbers = st.integers(0, (1 << 63) - 1)
words = st.from_regex(r"[a-z0-9_.-]{1,64}", fullmatch=True)
keys = st.binary(min_size=32, max_size=32)
bindings = st.builds(Binding, words, st.binary(max_size=100), numbers)
recipients = st.builds(Recipient, words, st.binary(min_size=1, max_size=50), keys)
heads = st.builds(
    Head,
    purpose=st.sampled_from(Purpose),
    vault=st.binary(min_size=16, max_size=16),
    suite=st.integers(0, 255),
    epoch=numbers,
    generation=numbers,
    anchor=st.none() | numbers,
    created=numbers,
    written=numbers,
    box=st.text(st.characters(categories=["L", "N"]), max_size=20),
    bindings=st.lists(bindings, max_size=3).map(tuple),
    wrapped=st.lists(st.builds(Wrapped, recipients, st.binary(min_size=1, max_size=50)), max_size=3).map(tuple),
)
sealed = st.binary(min_size=80, max_size=200)
records = st.lists(st.binary(max_size=100), max_size=5, unique=True)


def root_of(head: Head, index: bytes) -> Root:
    return Root(head, index, layout.body_of(head, index), bytes(32))


@given(heads, sealed, records)
def test_what_is_written_is_read(head: Head, index: bytes, held: list[bytes]) -> None:
    root = root_of(head, index)
    survey = layout.survey((layout.assemble(root, held), b""))
    assert survey.roots == (root,)
    assert set(survey.records.values()) == set(held)
    assert (survey.generations, survey.whole) == ((head.generation, -1), (True, False))


@given(st.lists(st.tuples(heads, sealed), min_size=1, max_size=4))
def test_the_latest_root_comes_first(parts: list[tuple[Head, bytes]]) -> None:
    roots = [root_of(head, index) for head, index in parts]
    found = [root.head.generation for root in layout.survey([layout.assemble(root, ()) for root in roots]).roots]
    assert found == sorted(found, reverse=True)
    assert set(found) == {root.head.generation for root in roots}


@given(st.dictionaries(words, st.tuples(numbers, keys), min_size=1, max_size=4), st.data())
def test_an_index_is_read_as_it_was_written(spaces: dict[str, tuple[int, bytes]], data: st.DataObject) -> None:
    namespaces = {name: Namespace(epoch, Secret(key)) for name, (epoch, key) in spaces.items()}
    names = st.tuples(st.sampled_from(sorted(spaces)), words).map("/".join)
    entries = data.draw(st.dictionaries(names, st.tuples(numbers, numbers, st.integers(0, 65536), keys), max_size=6))
    secrets = {name: (Entry(name, version, at, size), of) for name, (version, at, size, of) in entries.items()}
    found = layout.read_index(layout.pack_index(Index(namespaces, secrets, Secret(b"v" * 32))))
    assert found.secrets == secrets
    assert {name: (one.epoch, one.key.reveal()) for name, one in found.namespaces.items()} == spaces
    assert found.voucher.reveal() == b"v" * 32


@given(st.binary(max_size=300))
def test_any_bytes_are_surveyed(content: bytes) -> None:
    survey = layout.survey((content, b"\x9bMWV" + content))
    assert survey.roots == ()
    for read in (layout.read_root, layout.read_index):
        with pytest.raises(SealError):
            read(content)


cbor = st.recursive(
    st.integers(0, 300) | st.binary(max_size=40) | st.text(max_size=5) | st.none() | st.floats(),
    lambda inner: st.lists(inner, max_size=14),
)


@given(st.lists(cbor, max_size=13))
def test_a_body_of_other_shapes_is_refused(fields: list[object]) -> None:
    for number in (0, 1):
        with pytest.raises(SealError):
            layout.read_root(cbor2.dumps([cbor2.dumps([number, *fields]), bytes(32)]))
    if fields != [[], []]:  # an empty vault's
        with pytest.raises(SealError):
            layout.read_index(cbor2.dumps([bytes(32), *fields]))


@given(st.lists(cbor, max_size=20), st.integers(2, 1 << 62))
def test_a_later_format_is_known_whatever_follows(fields: list[object], number: int) -> None:
    with pytest.raises(VaultError, match=f"has format {number}") as caught:
        layout.read_root(cbor2.dumps([cbor2.dumps([number, *fields]), bytes(32)]))
    assert not isinstance(caught.value, SealError)


def test_a_secret_needs_its_namespace() -> None:
    index = Index({}, {"mqtt/plant": (Entry("mqtt/plant", 1, 0, 0), bytes(32))}, Secret(bytes(32)))
    with pytest.raises(SealError, match="without its namespace"):
        layout.read_index(layout.pack_index(index))


def test_what_would_be_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(Purpose.VAULT, bytes(16), 1, 0, 0, None, 0, 0, "", (), ())
    root = root_of(head, bytes(80))
    size = len(layout.assemble(root, [b"record"]))
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", size)
    assert len(layout.assemble(root, [b"record"])) == size
    with pytest.raises(VaultError, match=f"more than {size}"):
        layout.assemble(root, [b"record "])


@pytest.mark.parametrize("packed", [b"", b"\x82", b"\x98\x18", b"\x40", b"\x9f\xff"])
def test_items_are_bounded(packed: bytes) -> None:
    with pytest.raises(SealError):
        Reader(packed).items(1)
    assert Reader(b"\x81").items(1) == 1


@pytest.mark.parametrize("text", [b"\xff", b"\x00", "\u202e".encode(), b"abc", b""])
def test_text_is_printable_and_bounded(text: bytes) -> None:
    with pytest.raises(SealError):
        Reader(cbor2.dumps(text)).text(1, 2)
    assert Reader(cbor2.dumps("ü".encode())).text(1, 2) == "ü"
