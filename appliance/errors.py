"""Every error the appliance raises on purpose.

    MillwrightError            what is wrong, and the remedy
    |-- ConfigError            a setting: file, line, key, nearest valid key
    |-- PluginError            a plugin's name that no file answers to
    |-- EventError             a message that breaks the grammar; carries the reason it is counted under
    |-- BusError               the broker cannot be reached, started or spoken to
    |-- ConnectorError         a source of readings cannot be opened or read
    |-- ChannelError           a destination cannot be reached, or did not take what was sent
    |   `-- RefusedParcelError it says that it will never take it
    |-- InferenceError         a model or a device
    |   |-- ModelError         a bundle that is refused, naming the file
    |   `-- DeviceError        a device that cannot compile or run a model
    |-- VaultError             a vault that is missing, locked or cannot do what is asked
    |   |-- SealError          sealed bytes that do not open: wrong key, wrong place, altered, damaged
    |   |-- BindingError       this box is not the one the key is bound to, or it changed: names what moved
    |   `-- RefusedError       the policy does not allow it to this caller
    |-- RequestError           a request over HTTP that is refused; carries the status it is refused with
    `-- StoreError             a file or database that cannot be opened, read or written
        `-- DamagedError       its content is not what was written

One catch at the top (`appliance.__main__`) prints the message and the remedy and turns the class into an exit code.
"""


class MillwrightError(Exception):
    """`message` names the thing that is wrong; `remedy` is what a person can do about it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class ConfigError(MillwrightError):
    exit_code = 2


class PluginError(MillwrightError):
    exit_code = 2


class EventError(MillwrightError):
    """`reason` is the short fixed word under which the message is counted as dropped."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BusError(MillwrightError):
    exit_code = 3


class ConnectorError(MillwrightError):
    pass


class ChannelError(MillwrightError):
    pass


class RefusedParcelError(ChannelError):
    pass


class InferenceError(MillwrightError):
    pass


class ModelError(InferenceError):
    pass


class DeviceError(InferenceError):
    pass


class VaultError(MillwrightError):
    exit_code = 5


class SealError(VaultError):
    pass


class BindingError(VaultError):
    pass


class RefusedError(VaultError):
    pass


class RequestError(MillwrightError):
    """`status` of HTTP: 4xx where the one who asks can do better, 503 where asking later helps."""

    def __init__(self, status: int, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status


class StoreError(MillwrightError):
    pass


class DamagedError(StoreError):
    pass


class HeldError(StoreError):
    """Another process is at it."""
