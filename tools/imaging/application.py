"""The application as a tree of files: hash-locked wheels for the image's Python, and the project beside them.

Fetched and compiled in the builder while the image is made; a box fetches nothing.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.imaging import builder, places
from tools.imaging.places import Places

LOCKED = tuple(
    places.PROJECT / "tools" / "requirements" / f"{name}.txt" for name in ("tpm", "opcua")
)  # both hold run.txt
ON_DEVICES = ("appliance", "hardware", "ota")
HOST_ONLY = ("ota/publish", "ota/trainer")  # a device cannot sign
LIBRARY = Path("usr/lib/millwright")
LEFT_OUT = (  # of the wheels: what no box runs
    "pip",
    "pip-*",
    "bin",
    "*/tests",
    "openvino/tools",
    "openvino/include",
    "openvino/cmake",
    "openvino/libs/libopenvino_*pytorch_frontend*",
    "openvino/libs/libopenvino_*paddle_frontend*",
    "openvino/libs/libopenvino_*jax_frontend*",
    "openvino/libs/libopenvino_tensorflow_frontend*",
)
LEFT_OUT_LIGHT = (  # of the light edition: what computes on accelerators, and reads other models than the box's own
    "openvino/libs/libopenvino_intel_gpu_plugin*",
    "openvino/libs/libopenvino_intel_npu_plugin*",
    "openvino/libs/libopenvino_onnx_frontend*",
    "openvino/libs/libopenvino_gguf_frontend*",
    "openvino/libs/cache.json",
)
CROSS = {  # by the image's architecture, where it is not the builder's: pip, setuptools and cffi go by these
    places.ARM: {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "_PYTHON_SYSCONFIGDATA_NAME": "_sysconfigdata__aarch64-linux-gnu",
        "CC": "aarch64-linux-gnu-gcc",
        "PKG_CONFIG_LIBDIR": "/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig",
    }
}
SCRIPT = """set -eu
wheels=$1 tree=$2 epoch=$3; shift 3
packages=$tree/usr/lib/millwright/packages
export SOURCE_DATE_EPOCH=$epoch PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0
if [ ! -e "$wheels/whole" ]; then
    mkdir -p "$wheels"
    python3 -m pip download --quiet --no-deps --no-build-isolation --require-hashes \\
        --only-binary :all: --no-binary tpm2-pytss -d "$wheels" "$@"
    export CFLAGS="-O2 -g0" LDFLAGS=-Wl,--build-id=none TMPDIR=/tmp
    python3 -m pip wheel --quiet --no-deps --no-build-isolation --no-index -w "$wheels" "$wheels"/tpm2*.tar.gz
    : >"$wheels/whole"
fi
python3 -m pip install --quiet --no-deps --no-index --no-compile --target "$packages" "$wheels"/*.whl
"""
COMPILE = """set -eu
tree=$1 epoch=$2
export SOURCE_DATE_EPOCH=$epoch PYTHONHASHSEED=0
python3 -m compileall -q -f --invalidation-mode unchecked-hash -s "$tree" "$tree/usr/lib/millwright" >/dev/null || true
find "$tree" -exec touch --no-dereference --date="@$epoch" {} +
"""


def make(where: Places, epoch: int, *, light: bool = False) -> Path:
    """The tree to be laid over the image's; `light`: that of the light edition. BuilderError."""
    tree = where.application
    shutil.rmtree(tree, ignore_errors=True)
    (tree / LIBRARY).mkdir(parents=True)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in LOCKED)).hexdigest()[:16]
    wheels = where.wheels / digest
    fill = ["sh", "-c", SCRIPT, "fill", str(wheels), str(tree), str(epoch)]
    fill += [word for path in LOCKED for word in ("-r", str(path))]
    cross = CROSS.get(where.architecture, {})
    builder.run(where, fill, where.cache / "wheels.log", network=True, environment=cross)
    _thin(tree / LIBRARY / "packages", (*LEFT_OUT, *(LEFT_OUT_LIGHT if light else ())))
    _copy_project(tree / LIBRARY)
    dist = tree / "usr/lib/python3/dist-packages"
    dist.mkdir(parents=True)
    (dist / "millwright.pth").write_text(f"/{LIBRARY}\n/{LIBRARY}/packages\n")
    builder.run(where, ["sh", "-c", COMPILE, "compile", str(tree), str(epoch)], where.cache / "compile.log")
    return tree


def _thin(packages: Path, left_out: Sequence[str]) -> None:
    for pattern in left_out:
        for path in sorted(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copy_project(library: Path) -> None:
    """Of the last commit: an image is that of something that can be named."""
    with subprocess.Popen(_git("archive", "--format=tar", "HEAD", *ON_DEVICES), stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "-x", "-C", str(library)], stdin=packed.stdout, check=True)
    for folder in HOST_ONLY:
        shutil.rmtree(library / folder, ignore_errors=True)


def identity() -> str:
    """Of what is copied: git's own digests of the folders."""
    trees = [f"HEAD:{folder}" for folder in ON_DEVICES]
    return subprocess.run(_git("rev-parse", *trees), check=True, capture_output=True, text=True).stdout


def _git(*words: str) -> list[str]:
    return ["git", "-C", str(places.PROJECT), *words]
