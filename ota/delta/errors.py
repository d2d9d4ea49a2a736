"""Every error of the delta codec.

DeltaError             what is wrong, and the remedy
|-- LayoutError        a model file whose tensors cannot be told
|-- PatchError         a patch that breaks the format or one of its bounds
`-- MismatchError      bytes that are not the ones the patch was made for, or made to give
"""


class DeltaError(Exception):
    """`message` names the thing that is wrong; `remedy` is what a person can do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class LayoutError(DeltaError):
    pass


class PatchError(DeltaError):
    """The patch is damaged or hostile; fetching it again is the only remedy."""

    def __init__(self, message: str, remedy: str = "fetch the patch again") -> None:
        super().__init__(message, remedy)


class MismatchError(DeltaError):
    pass
