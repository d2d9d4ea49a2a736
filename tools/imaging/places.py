"""Where things are: the cache, the keys, and the tree the image is made of."""

import os
from dataclasses import dataclass
from pathlib import Path

CACHE = "MILLWRIGHT_IMAGE_CACHE"  # environment: another cache folder than the user's
KEYS = "MILLWRIGHT_IMAGE_KEYS"  # environment: the folder of the release's own keys
PROJECT = Path(__file__).resolve().parents[2]
TREE = PROJECT / "image"
X86, ARM = "x86-64", "arm64"  # as systemd and mkosi call them
ARCHITECTURES = (X86, ARM)


@dataclass(frozen=True)
class Places:
    """Nothing of it is in the repository. `cache` wants 10 GB of disk. What is of another `architecture` lies apart."""

    cache: Path
    architecture: str = X86

    @property
    def builder(self) -> Path:
        return self._apart("builder")

    @property
    def packages(self) -> Path:
        return self.cache / "packages"

    @property
    def wheels(self) -> Path:
        return self._apart("wheels")

    @property
    def application(self) -> Path:
        return self._apart("application")

    @property
    def installed(self) -> Path:
        return self.cache / "installed"

    @property
    def workspace(self) -> Path:
        return self.cache / "workspace"

    @property
    def keys(self) -> Path:
        given = os.environ.get(KEYS)
        return Path(given) if given else self.cache / "test-keys"

    def output(self, profile: str) -> Path:
        return self._apart("out") / profile

    @property
    def trials(self) -> Path:
        """Disks, TPMs and logs of machines that are tried."""
        return self._apart("trials")

    def _apart(self, name: str) -> Path:
        return self.cache / (name if self.architecture == X86 else f"{name}-{self.architecture}")


def find(architecture: str = X86) -> Places:
    given = os.environ.get(CACHE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Places((Path(given) if given else Path(base) / "millwright" / "image").absolute(), architecture)
