"""The vault's frames: what is written reads back, and nothing else reads at all."""

import random
import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BindingError, RefusedError, SealError, StoreError, VaultError
from appliance.vault import protocol
from appliance.vault.port import MAX_SECRET_BYTES, Entry
from appliance.vault.protocol import MAX_NAME, MAX_REQUEST, Frames, ProtocolError, Request, Verb
from appliance.vault.secret import Secret

TEXTS = st.text(max_size=60).map(lambda text: "".join(filter(str.isprintable, text)))
REQUESTS = st.builds(Request, st.sampled_from(list(Verb)), TEXTS, TEXTS, st.binary(max_size=300).map(Secret))


def content_of(frame: bytes) -> bytes:
    (content,) = Frames(MAX_REQUEST).feed(frame)
    return content


def same(one: Request, other: Request) -> bool:
    return one[:3] == other[:3] and one.content.reveal() == other.content.reveal()


def decoded(content: bytes) -> Request | ProtocolError:
    try:
        return protocol.decode_request(content)
    except ProtocolError as error:
        return error


class TestFrames:
    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
    def test_a_stream_is_cut_where_it_was_joined_however_it_arrives(
        self, contents: list[bytes], data: st.DataObject
    ) -> None:
        stream = b"".join(struct.pack(">I", len(content)) + content for content in contents)
        frames, found = Frames(50), []
        while stream:
            taken = data.draw(st.integers(1, len(stream)))
            found += list(frames.feed(stream[:taken]))
            stream = stream[taken:]
        assert found == contents
        assert not frames.begun

    @pytest.mark.parametrize("length", [0, 51, 1 << 20, (1 << 32) - 1])
    def test_a_length_out_of_bounds_is_refused_by_the_head_alone(self, length: int) -> None:
        with pytest.raises(ProtocolError, match="1 to 50"):
            list(Frames(50).feed(struct.pack(">I", length)))

    def test_the_largest_request_fits(self) -> None:
        request = Request(Verb.PUT, "x" * MAX_NAME, "y" * MAX_NAME, Secret(bytes(MAX_SECRET_BYTES)))
        assert same(protocol.decode_request(content_of(protocol.encode_request(request))), request)


class TestRequests:
    @given(REQUESTS)
    def test_it_reads_back(self, request: Request) -> None:
        assert same(protocol.decode_request(content_of(protocol.encode_request(request))), request)

    @given(st.binary(max_size=200))
    def test_anything_else_is_refused(self, content: bytes) -> None:
        try:
            request = protocol.decode_request(content)
        except ProtocolError:
            return
        assert content_of(protocol.encode_request(request)) == content  # one request has one encoding

    def test_flipped_bits_are_refused_or_are_another_request(self) -> None:
        chance = random.Random(5)
        whole = content_of(protocol.encode_request(Request(Verb.PUT, "mqtt/plant", "", Secret(b"hunter2"))))
        for _ in range(3000):
            altered = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
            found = decoded(bytes(altered))
            if isinstance(found, Request):
                assert content_of(protocol.encode_request(found)) == bytes(altered)
            else:
                assert "hunter2" not in str(found)
                assert found.__cause__ is None

    @pytest.mark.parametrize(
        "value",
        [
            [1, 2, b"", b""],
            [1, 2, b"", b"", b"", b""],
            [2, 2, b"", b"", b""],
            [1, 99, b"", b"", b""],
            [1, 2, "text", b"", b""],
            [1, 2, b"\xff", b"", b""],
            [1, 2, b"x" * (MAX_NAME + 1), b"", b""],
            [1, 2, b"", b"", bytes(MAX_SECRET_BYTES + 1)],
            {"verb": 2},
            cbor2.CBORTag(5, [1 << 40, 1]),
        ],
    )
    def test_what_comes_near_is_refused(self, value: object) -> None:
        with pytest.raises(ProtocolError):
            protocol.decode_request(cbor2.dumps(value))

    @pytest.mark.parametrize(
        "text", ["a/b\nERROR forged: line", "\x1b[2Ja/b", "a/b\x9b31m", "a/\u202eb", "a\u2028b", "a\0b"]
    )
    def test_what_would_forge_a_line_of_a_log_is_no_request(self, text: str) -> None:
        for request in (Request(Verb.ROTATE, text, "secret"), Request(Verb.ROTATE, "a/b", text)):
            with pytest.raises(ProtocolError):
                protocol.decode_request(content_of(protocol.encode_request(request)))

    def test_a_request_does_not_show_its_content(self) -> None:
        assert "hunter2" not in repr(Request(Verb.PUT, "mqtt/plant", "", Secret(b"hunter2")))


class TestAnswers:
    @pytest.mark.parametrize("size", [0, 1, protocol.PART_BYTES, protocol.PART_BYTES + 1, 3 * protocol.PART_BYTES])
    def test_a_body_of_any_size_reads_back(self, size: int) -> None:
        body = random.Random(size).randbytes(size)
        frames = Frames(protocol.MAX_ANSWER)
        answers = [protocol.decode_answer(one) for part in protocol.encode_answer(body) for one in frames.feed(part)]
        assert b"".join(protocol.result(answer) for answer in answers) == body
        assert [answer.code for answer in answers[:-1]] == [protocol.Code.PART] * (len(answers) - 1)

    @pytest.mark.parametrize("kind", [VaultError, SealError, BindingError, RefusedError])
    def test_an_error_arrives_as_itself(self, kind: type[VaultError]) -> None:
        (content,) = Frames(protocol.MAX_ANSWER).feed(protocol.encode_error(kind("it is so", "do that")))
        with pytest.raises(kind) as caught:
            protocol.result(protocol.decode_answer(content))
        assert (type(caught.value), caught.value.message, caught.value.remedy) == (kind, "it is so", "do that")

    def test_an_error_of_another_kind_arrives_as_the_vaults(self) -> None:
        (content,) = Frames(protocol.MAX_ANSWER).feed(protocol.encode_error(StoreError("x" * 5000, "make room")))
        with pytest.raises(VaultError, match=r"^x{1000}"):
            protocol.result(protocol.decode_answer(content))

    @given(st.binary(max_size=100))
    def test_anything_else_is_no_answer(self, content: bytes) -> None:
        try:
            answer = protocol.decode_answer(content)
            protocol.result(answer)
            protocol.from_body(answer.body, list[Entry])
        except (ProtocolError, VaultError):
            return
        assert content[0] == 0x83
