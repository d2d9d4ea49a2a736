"""What goes wrong with a TPM. All are OSErrors, so that who uses a TPM need not import this.

TpmError (OSError)
|-- RefusedError (PermissionError)    it will not do that in the state the machine is in
|-- MissingError (FileNotFoundError)  an index is not there, or not the one that was meant
`-- DamagedError (ValueError)         what it was given is not what this TPM once gave
"""


class TpmError(OSError):
    pass


class RefusedError(TpmError, PermissionError):
    pass


class MissingError(TpmError, FileNotFoundError):
    pass


class DamagedError(TpmError, ValueError):
    pass
