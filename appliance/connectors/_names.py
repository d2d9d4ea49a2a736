"""Makes a level of an asset's path out of any text: a host's name, a file's name."""

import re

from appliance.errors import ConfigError, EventError
from appliance.events import topics

_FOREIGN = re.compile(r"[^a-z0-9_.-]+")
_LONGEST = 60  # characters


def level(text: str, otherwise: str) -> str:
    """`otherwise` where nothing of the text fits the grammar."""
    return _FOREIGN.sub("-", text.lower()).strip("-.")[:_LONGEST] or otherwise


def checked(asset: str) -> str:
    """The asset itself; ConfigError where a setting breaks the grammar."""
    try:
        return topics.check_path(asset)
    except EventError as error:
        raise ConfigError(f"asset: {error.message}", "Write a path such as site/line1/pump.") from None
