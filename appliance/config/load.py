"""From a file (or none) to a Config."""

from pathlib import Path

from appliance.config.document import Document
from appliance.config.layers import layered
from appliance.config.places import INSTALLED
from appliance.config.schema import Config


def load(path: Path | None = None) -> tuple[Config, Document]:
    """The configuration and the document it came from (for the connectors' own tables).

    Without a path: /etc/millwright/millwright.toml where it exists, else defaults that run. ConfigError otherwise.
    """
    if path is None and INSTALLED.exists():
        path = INSTALLED
    document = layered(Document.read(path)) if path else Document("built-in defaults", "")
    return document.into(Config, document.tables), document
