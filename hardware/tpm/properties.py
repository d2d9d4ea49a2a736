"""What a TPM says of itself."""

import struct

from tpm2_pytss.constants import TPM2_CAP

from hardware.tpm.link import Link, again, translated

_MANUFACTURER, _VENDOR_STRING, _FIRMWARE = 0x105, 0x106, 0x10B  # TPM 2.0 library, part 2, 6.13


def read(link: Link) -> tuple[str, str, str]:
    """Maker, model and firmware, for people."""
    with translated("the TPM"):
        _, found = again(
            lambda: link.esys.get_capability(capability=TPM2_CAP.TPM_PROPERTIES, prop=_MANUFACTURER, property_count=8)
        )
    said = {int(one.property): int(one.value) for one in found.data.tpmProperties}
    model = "".join(_text(said.get(_VENDOR_STRING + rank, 0)) for rank in range(4))
    first, second = said.get(_FIRMWARE, 0), said.get(_FIRMWARE + 1, 0)
    version = ".".join(str(part) for part in struct.unpack(">HHHH", struct.pack(">II", first, second)))
    return _text(said.get(_MANUFACTURER, 0)), model.strip(), version


def _text(number: int) -> str:
    letters = number.to_bytes(4, "big").decode("ascii", "replace")
    return "".join(letter for letter in letters if letter.isprintable()).strip()
