"""What an allow-list in a TPM's memory holds: the states of the registers that open a key. Pure.

content = 000b, digest of PolicyOR of the slots                      as PolicyAuthorizeNV reads it
          01, number of registers, which, number of slots, then each slot's values; zeros to the end
"""

import struct
from collections.abc import Mapping, Sequence

from hardware.tpm import policies
from hardware.tpm.errors import DamagedError

Slots = Sequence[Mapping[int, bytes]]  # register -> value, the same registers in each

MOST_SLOTS = 4
MOST_REGISTERS = 2
CONTENT_BYTES = 34 + 3 + MOST_REGISTERS + MOST_SLOTS * MOST_REGISTERS * 32


def encode(slots: Slots) -> bytes:
    numbers = sorted(slots[0])
    if not 1 <= len(slots) <= MOST_SLOTS or not 1 <= len(numbers) <= MOST_REGISTERS:
        raise ValueError(f"an allow-list has 1 to {MOST_SLOTS} slots of 1 to {MOST_REGISTERS} registers")
    if not all(0 <= number < policies.REGISTERS for number in numbers):
        raise ValueError("an allow-list of registers that there are not")
    if any(sorted(slot) != numbers for slot in slots):
        raise ValueError("all slots of an allow-list have the same registers")
    rest = bytes([1, len(numbers), *numbers, len(slots)]) + b"".join(policies.joined(slot) for slot in slots)
    digest = policies.of_any([policies.of_registers(slot) for slot in slots])
    return (struct.pack(">H", 0x000B) + digest + rest).ljust(CONTENT_BYTES, b"\0")


def decode(content: bytes) -> list[dict[int, bytes]]:
    """DamagedError where `encode` has not made it."""
    try:
        rest = content[34:]
        version, count = rest[0], rest[1]
        numbers, many, values = list(rest[2 : 2 + count]), rest[2 + count], rest[3 + count :]
        width = 32 * count
        slots = [
            {number: values[at + 32 * rank : at + 32 * rank + 32] for rank, number in enumerate(numbers)}
            for at in range(0, many * width, width)
        ]
        if version == 1 and encode(slots) == content:
            return slots
    except (IndexError, ValueError):
        pass
    raise DamagedError("the TPM's allow-list is not in order")
