"""OpenVINO's native bindings without its Python package: 20 MB and a quarter of a second less than `import openvino`.

The package's `__init__` imports every operation set, the front ends and the tools for building graphs; a box that only
compiles and infers needs the native module alone. A later `import openvino` in the same process works as ever and
shares the native module.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

from appliance.errors import DeviceError

_NATIVE = "openvino._pyopenvino"


def load() -> ModuleType:
    """The native module. DeviceError where OpenVINO is not installed or too different from the one we know."""
    if loaded := sys.modules.get(_NATIVE):
        return loaded
    spec = importlib.util.find_spec("openvino")
    if spec is None:
        raise DeviceError("OpenVINO is not installed", "Install the pinned requirements: tools/setup.")
    # The extension's import looks for its parent package: it finds an empty one, which nobody else gets to see.
    sys.modules["openvino"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(_NATIVE)
    except ImportError as error:
        raise DeviceError(
            f"OpenVINO cannot be loaded: {error}", "Install the pinned requirements again: tools/setup."
        ) from error
    finally:
        del sys.modules["openvino"]
