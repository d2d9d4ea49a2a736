"""Every error of the updates.

    OtaError               what is wrong, and the remedy
    |-- ManifestError      signed data of a target, or a packed bundle, that breaks its format
    |   `-- SealedError    an encrypted file that does not open: another key, another context, altered
    |-- TrustError         a repository that breaks a rule of trust
    |   |-- ExpiredError   its newest state is out of date: it was held back, or nobody signs any more
    |   `-- OlderError     it is older than what this box has seen
    |-- FetchError         a server or a stick that cannot be read to the end
    |   |-- MissingError   it does not have this file
    |   `-- DamagedError   it gave other bytes than the signed ones
    |-- SpaceError         no room; nothing was begun
    |-- StorageError       this box's own folder of updates or models
    `-- PublishError       a repository that is being made

Whoever joins updates to the appliance turns them into its own errors: message and remedy are alike.
"""


class OtaError(Exception):
    """`message` names the thing that is wrong; `remedy` is what a person can do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message

    @property
    def line(self) -> str:
        """Both as sentences in one line, for what is remembered."""
        return f"{self.message.rstrip('.')}. {self.remedy}" if self.remedy else self.message


class ManifestError(OtaError):
    pass


class SealedError(ManifestError):
    pass


class TrustError(OtaError):
    pass


class ExpiredError(TrustError):
    pass


class OlderError(TrustError):
    pass


class FetchError(OtaError):
    """What arrived is kept; the next attempt goes on from there."""


class MissingError(FetchError):
    pass


class DamagedError(FetchError):
    """What arrived is thrown away."""


class SpaceError(OtaError):
    pass


class StorageError(OtaError):
    pass


class PublishError(OtaError):
    pass
