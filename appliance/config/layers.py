"""A configuration laid over the one that it names as its `base`.

What an image says stays in the image, where its next release may say it otherwise; what is said of this box alone lies
over it.
"""

import os
from pathlib import Path
from typing import Any

from appliance.config.document import Document

KEY = "base"


def layered(document: Document) -> Document:
    """The document over its base, where it names one: absolute, or from its own folder. ConfigError where that cannot
    be read, or has a base itself."""
    named = document.tables.get(KEY, "")
    if not isinstance(named, str) or not named:
        return document
    path = Path(document.source).resolve().parent / named
    if not os.access(path, os.R_OK):
        raise document.error((KEY,), f"{path} cannot be read", "Name a TOML file, or take the key away.")
    base = Document.read(path)
    if KEY in base.tables:
        raise base.error((KEY,), "a base has no base of its own", "Write what it says into this file.")
    return document.over(base, merged(base.tables, document.tables))


def merged(tables: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables of a configuration with others laid over them, key by key; connectors replace all that were there."""
    found = dict(tables)
    for key, value in over.items():
        below = found.get(key)
        inner = key != "connectors" and isinstance(value, dict) and isinstance(below, dict)
        found[key] = {**below, **value} if inner and isinstance(below, dict) else value
    return found
