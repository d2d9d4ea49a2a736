"""Loads a plugin by its file's name: `load("appliance.connectors", "replay")` imports `appliance/connectors/replay.py`.

A plugin is one file with one `Settings` struct and one `create(settings)`. It is imported only when its name is asked
for; there is no registry to keep in step.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType

from appliance.errors import PluginError

NOT_PLUGINS = {"port"}


def names(package: str) -> list[str]:
    """The plugins of a package: the names of its files, without the port and private ones."""
    path = importlib.import_module(package).__path__
    found = (module.name for module in pkgutil.iter_modules(path) if not module.ispkg)
    return sorted(name for name in found if name not in NOT_PLUGINS and not name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """The plugin's module. PluginError names the nearest plugin where there is none of that name."""
    known = names(package)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PluginError(
            f"'{name}' is not one of the {package.rpartition('.')[2]}", f"{hint}There are: {', '.join(known)}."
        )
    return importlib.import_module(f"{package}.{name}")
