"""See `appliance.runtime.files`."""

from appliance.runtime.files import read_sealed, set_aside, write_atomic, write_sealed

__all__ = ["read_sealed", "set_aside", "write_atomic", "write_sealed"]
