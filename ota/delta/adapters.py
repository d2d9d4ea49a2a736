"""LoRA factors as trainers save them: a safetensors file with `NAME.lora_A.weight` and `NAME.lora_B.weight`.

A scaling (`lora_alpha / r`) is in the factors, or in a scalar `NAME.scaling`. Host only.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ota.delta import formats
from ota.delta.errors import DeltaError
from ota.delta.files import File
from ota.delta.matching import Factors
from ota.delta.tensors import Kind, Source, Tensor

MAX_BYTES = 1 << 30  # of one factor
_A, _B = ".lora_A.weight", ".lora_B.weight"
_NUMPY = {Kind.F32: "<f4", Kind.F16: "<f2"}


def read(path: Path) -> Factors:
    """U [rows, rank] and V [rank, columns] by the name of the weights, `NAME.weight`."""
    model = formats.read(path)
    tensors = {tensor.name: tensor for tensor in model.layout.tensors}
    found = {}
    with File(path) as source:
        for name in tensors:
            stem = name.removesuffix(_A)
            if stem != name and stem + _B in tensors:
                scaling = stem + ".scaling"
                factor = float(_values(source, tensors[scaling])[0]) if scaling in tensors else 1.0
                up, down = _matrix(source, tensors[stem + _B]), _matrix(source, tensors[name])
                found[f"{stem.removeprefix('base_model.model.')}.weight"] = (up * np.float32(factor), down)
    if not found:
        raise DeltaError(f"{path} holds no factors", f"they are named NAME{_A} and NAME{_B}")
    return found


def _matrix(source: Source, tensor: Tensor) -> NDArray[np.float32]:
    if len(tensor.shape) != 2:
        raise DeltaError(f"{tensor.name} is no matrix", "hand over the factors as they are multiplied")
    return _values(source, tensor).reshape(tensor.shape)


def _values(source: Source, tensor: Tensor) -> NDArray[np.float32]:
    if tensor.size > MAX_BYTES:
        raise DeltaError(f"{tensor.name} has {tensor.size} bytes", "factors are small")
    data = source.read(tensor.offset, tensor.size)
    if tensor.kind is Kind.BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if tensor.kind not in _NUMPY:
        raise DeltaError(f"{tensor.name} is of kind {tensor.kind}", "factors are f32, f16 or bf16")
    return np.frombuffer(data, _NUMPY[tensor.kind]).astype(np.float32)
