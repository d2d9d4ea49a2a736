"""What is asked at which path of the KServe v2 protocol.

Reading, computing and writing of an inference are one piece of work in a thread of the service's pool: the event loop
only carries bytes. Work beyond what may wait is refused with 503.
"""

import zlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from appliance import __version__
from appliance.errors import DeviceError, MillwrightError, ModelError, RequestError
from appliance.inference.models import MODEL_FILES
from appliance.inference.serving import Repertoire, Served
from appliance.services.http import Request, Response, json_response
from appliance.services.kserve import protocol
from appliance.services.kserve.regions import Regions

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
    "system_shared_memory",
]
PLATFORMS = dict(zip(MODEL_FILES, ("openvino_ir", "tensorflow_lite", "onnx_onnxv1"), strict=True))

_T = TypeVar("_T")
Work = Callable[[Callable[[], _T]], Awaitable[_T]]  # performs a call in a thread; RequestError where too many wait


class _Index(Struct):
    ready: bool = False


class _Load(Struct):
    parameters: dict[str, Any] = {}


class _Registration(Struct):
    key: str
    byte_size: Annotated[int, Meta(ge=1)]
    offset: Annotated[int, Meta(ge=0)] = 0


_index, _registration = msgspec.json.Decoder(_Index), msgspec.json.Decoder(_Registration)
_load = msgspec.json.Decoder(_Load)

# Of Triton's own extensions, what is not here, and what takes its place.
MISSING = {
    "cudasharedmemory": ("shared memory of CUDA", "Use system shared memory."),
    "logging": ("log settings", "Set log.level in millwright.toml."),
    "trace": ("traces", "`millwright models bench` measures."),
}


class Endpoint:
    """`work` runs inferences, `is_ready` says whether all that is wanted was loaded or tried."""

    def __init__(
        self, repertoire: Repertoire, work: "Work[Any]", is_ready: Callable[[], bool], body_bytes: int
    ) -> None:
        self._repertoire, self._work, self._is_ready, self._body_bytes = repertoire, work, is_ready, body_bytes
        self._regions = Regions()

    async def answer(self, request: Request) -> Response:
        """RequestError where it is refused."""
        match (request.method, *request.path):
            case ("GET", "v2"):
                return json_response({"name": "millwright", "version": __version__, "extensions": EXTENSIONS})
            case ("GET", "v2", "health", "live"):
                return json_response({"live": True})
            case ("GET", "v2", "health", "ready"):
                ready = self._is_ready()
                return json_response({"ready": ready}, 200 if ready else 503)
            case ("GET", "v2", "models", "stats"):
                return json_response({"model_stats": [_statistics(one) for one in self._repertoire.loaded]})
            case (_, "v2", "models", name, "versions", version, *rest):
                return await self._model(request, name, version, tuple(rest))
            case (_, "v2", "models", name, *rest):
                return await self._model(request, name, "", tuple(rest))
            case (_, "v2", "repository", *rest):
                return await self._repository(request, tuple(rest))
            case (_, "v2", "systemsharedmemory", *rest):
                return self._memory(request, tuple(rest))
        raise _unknown(request)

    async def _model(self, request: Request, name: str, version: str, rest: tuple[str, ...]) -> Response:
        match (request.method, *rest):
            case ("GET",):
                return json_response(self._metadata(self._find(name, version)))
            case ("GET", "config"):
                return json_response(_configuration(self._find(name, version)))
            case ("GET", "stats"):
                return json_response({"model_stats": [_statistics(one) for one in self._every(name, version)]})
            case ("GET", "ready"):
                return json_response({"name": self._find(name, version).name, "ready": True})
            case ("POST", "infer"):
                return await self._work(lambda: self._infer(request, name, version))  # type: ignore[no-any-return]
        raise _unknown(request)

    def _find(self, name: str, version: str) -> Served:
        try:
            return self._repertoire.get(name, version)
        except ModelError as error:
            raise RequestError(404, error.message, error.remedy) from None

    def _every(self, name: str, version: str) -> list[Served]:
        """All versions, where none is named."""
        first = self._find(name, version)
        return [first] if version else [one for one in self._repertoire.loaded if one.name == first.name]

    def _metadata(self, served: Served) -> dict[str, Any]:
        return {
            "name": served.name,
            "versions": sorted({one.version for one in self._repertoire.loaded if one.name == served.name}),
            "platform": PLATFORMS[served.bundle.model.name],
            "inputs": [_described(spec) for spec in served.inputs],
            "outputs": [_described(spec) for spec in served.outputs],
        }

    def _infer(self, request: Request, name: str, version: str) -> Response:
        body = self._unpacked(request)
        asked, rest = protocol.parse(body, _header_length(request))
        try:
            with self._repertoire.using(name, version) as served:
                return self._inferred(served, asked, rest)
        except ModelError as error:
            raise RequestError(404, error.message, error.remedy) from None

    def _inferred(self, served: Served, asked: protocol.Asked, rest: memoryview) -> Response:
        try:
            inputs = protocol.tensors(asked, rest, served.inputs, self._regions)
            answer = served.answer(inputs, protocol.wanted_names(asked), protocol.wants_decoded(asked))
            head = {
                "model_name": served.name,
                "model_version": served.version,
                "parameters": {"device": answer.device},
            }
            body = protocol.answer(asked, head, answer.outputs, answer.decoded, served.labels, self._regions)
        except RequestError as error:
            raise RequestError(error.status, f"model '{served.name}': {error.message}", error.remedy) from None
        except ModelError as error:
            raise RequestError(400, f"model '{served.name}': {error.message}", error.remedy) from None
        except DeviceError as error:
            raise RequestError(503, f"model '{served.name}': {error.message}", error.remedy) from None
        if body.header is None:
            return Response(200, body.parts, (("Content-Type", "application/json"),))
        length = ("Inference-Header-Content-Length", str(body.header))
        return Response(200, body.parts, (("Content-Type", "application/octet-stream"), length))

    def _unpacked(self, request: Request) -> bytes | bytearray:
        """The body as it was before a client compressed it."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding == "identity":
            return request.body
        if encoding not in ("gzip", "deflate"):
            raise RequestError(415, f"the encoding '{encoding[:40]}' is not known", "Use gzip, deflate or none.")
        unpacking = zlib.decompressobj(wbits=47)  # both forms
        try:
            found = unpacking.decompress(request.body, self._body_bytes)
        except zlib.error as error:
            raise RequestError(400, f"the body is no {encoding}: {error}") from None
        if unpacking.unconsumed_tail:
            raise RequestError(413, f"the body is larger than {self._body_bytes:,} bytes", "Use shared memory.")
        if not unpacking.eof:
            raise RequestError(400, f"the body is no whole {encoding}")
        return found

    async def _repository(self, request: Request, rest: tuple[str, ...]) -> Response:
        repertoire = self._repertoire
        match (request.method, *rest):
            case ("POST", "index"):
                only_ready = protocol.decoded(_index, memoryview(request.body or b"{}")).ready
                return json_response(await self._work(lambda: self._listed(only_ready)))
            case ("POST", "models", name, "load"):
                if protocol.decoded(_load, memoryview(request.body or b"{}")).parameters:
                    raise RequestError(
                        400,
                        f"model '{name[:200]}': a configuration or files cannot be handed over here",
                        "A bundle brings its card: millwright models add",
                    )
                await self._change(lambda: repertoire.load(name))
                return json_response({})
            case ("POST", "models", name, "unload"):
                await self._change(lambda: repertoire.unload(name))
                return json_response({})
        raise _unknown(request)

    async def _change(self, call: Callable[[], object]) -> None:
        def performed() -> None:
            try:
                call()
            except MillwrightError as error:
                raise RequestError(400, error.message, error.remedy) from None

        await self._work(performed)

    def _listed(self, only_ready: bool) -> list[dict[str, str]]:
        ready = {served.bundle.digest for served in self._repertoire.loaded}
        problems = self._repertoire.problems
        return [
            {
                "name": entry.card.name,
                "version": entry.card.version,
                "state": "READY" if entry.digest in ready else "UNAVAILABLE",
                "reason": "" if entry.digest in ready else problems.get(entry.card.name, "not loaded"),
            }
            for entry in self._repertoire.library.entries()
            if entry.digest in ready or not only_ready
        ]

    def _memory(self, request: Request, rest: tuple[str, ...]) -> Response:
        regions = self._regions
        match (request.method, *rest):
            case ("GET", "status"):
                return json_response(regions.status())
            case ("GET", "region", name, "status"):
                return json_response(regions.status(name))
            case ("POST", "region", name, "register"):
                asked = protocol.decoded(_registration, memoryview(request.body))
                regions.register(name, asked.key, asked.offset, asked.byte_size)
            case ("POST", "region", name, "unregister"):
                regions.unregister(name)
            case ("POST", "unregister"):
                regions.unregister()
            case _:
                raise _unknown(request)
        return json_response({})

    def close(self) -> None:
        self._regions.unregister()


def _described(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": protocol.NAMES[spec.dtype], "shape": list(spec.shape)}


def _header_length(request: Request) -> int | None:
    told = request.headers.get("inference-header-content-length")
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) < 16):
        raise RequestError(400, f"Inference-Header-Content-Length '{told[:40]}' is no length")
    return int(told)


def _configuration(served: Served) -> dict[str, Any]:
    """As Triton tells it. Without a largest batch, shapes are whole: the first axis is one of them."""
    return {
        "name": served.name,
        "platform": PLATFORMS[served.bundle.model.name],
        "max_batch_size": 0,
        "input": [_port(spec) for spec in served.inputs],
        "output": [_port(spec) for spec in served.outputs],
    }


def _port(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{protocol.NAMES[spec.dtype]}", "dims": list(spec.shape)}


def _statistics(served: Served) -> dict[str, Any]:
    """Of the time since the model was loaded, in Triton's words: an execution is a call, an inference a row."""
    tally = served.tally
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": tally.last // 1_000_000,
        "inference_count": tally.rows,
        "execution_count": tally.answered,
        "inference_stats": {
            "success": {"count": tally.answered, "ns": tally.answered_ns},
            "fail": {"count": tally.failed, "ns": tally.failed_ns},
        },
        "batch_stats": [],
    }


def _unknown(request: Request) -> RequestError:
    for part in request.path[1:]:
        if part in MISSING:
            what, instead = MISSING[part]
            return RequestError(501, f"Millwright has no {what}", instead)
    path = "/" + "/".join(request.path)
    return RequestError(
        404, f"there is nothing at {request.method} {path[:200]}", "See /v2 and the KServe v2 protocol."
    )
