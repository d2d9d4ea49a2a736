"""What a box's parts are worth before a key is sealed with them: which are used, how many may change, and is it enough.

Two thieves are reckoned with. One has the disk, and with it the host secret and what the disk says of itself; one has a
copy of the disk's content. Each has to guess the cheapest k of the parts, and the UEFI secret where there is one. As
many parts may be replaced as leave the first of them `minimum_bits` to guess, and two at most.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.errors import BindingError
from appliance.vault.factors import KINDS, SECRET_BITS, SHARED, Fact, Factor, Slot, chosen, judge

COMFORT_BITS = 80  # below it a warning is due


@dataclass(frozen=True)
class Row:
    what: str
    bits: int
    used: bool
    why: str


@dataclass(frozen=True)
class Report:
    """For `vault init` and `vault status`; holds no value of any part."""

    rows: tuple[Row, ...]
    needed: int
    of: int
    stolen_bits: int  # left to guess for who has the disk
    copied_bits: int  # for who has a copy of its content
    minimum_bits: int
    hypervisor: str
    uefi: bool

    @property
    def sufficient(self) -> bool:
        return self.stolen_bits >= self.minimum_bits

    def table(self) -> list[tuple[str, str, str]]:
        """Lines of (factor, estimated bits, why), without a head."""
        return [(row.what, str(row.bits), row.why) for row in self.rows]

    @property
    def warnings(self) -> tuple[str, ...]:
        found = []
        if self.stolen_bits < COMFORT_BITS:
            found.append(f"whoever steals the disk has about 2^{self.stolen_bits} guesses to make, no more")
        if self.needed == self.of > 0:
            found.append("no part may be replaced: keep the recovery key at hand")
        if not self.of:
            found.append("no part of this box can be told from another's: only its secrets bind the key")
        if self.hypervisor:
            found.append(
                f"a guest of {self.hypervisor}: a copy of the whole machine, with its settings, opens the vault"
            )
        return tuple(found)


@dataclass(frozen=True)
class Plan:
    factors: tuple[Factor, ...]
    needed: int
    report: Report


def plan(facts: Iterable[Fact], uefi: bool, hypervisor: str, minimum_bits: int) -> Plan:
    """What would be sealed with. `uefi`: there is a secret in a UEFI variable; a guest's variables are kept beside its
    disk, so there it is worth nothing. Nothing is refused here: see `require`."""
    seen = tuple(facts)
    verdicts = judge(seen)
    factors = chosen([verdict.factor for verdict in verdicts if verdict.factor])
    secret = SECRET_BITS if uefi and not hypervisor else 0
    needed = _needed(factors, secret, minimum_bits)
    used = {factor.slot for factor in factors}
    rows = (
        *_secret_rows(uefi, hypervisor),
        *(_row(verdict.slot, verdict.bits, verdict.reason, verdict.slot in used) for verdict in verdicts),
        *(Row(f"{SHARED[fact.kind]} ({fact.value})", 0, False, _SIBLINGS) for fact in seen if fact.kind in SHARED),
    )
    stolen, copied = secret + _cheapest(factors, needed, True), secret + _cheapest(factors, needed, False)
    report = Report(rows, needed, len(factors), stolen, copied, minimum_bits, hypervisor, uefi)
    return Plan(tuple(factors), needed, report)


def require(report: Report) -> None:
    """BindingError where the box has too little of its own."""
    if report.sufficient:
        return
    rejected = [f"{row.what}: {row.why}" for row in report.rows if not row.used and row.why != _SIBLINGS]
    told = f" ({'; '.join(rejected)})" if rejected else ""
    raise BindingError(
        f"this box has too little of its own to bind a key to: a thief of its disk would have to guess about "
        f"{report.stolen_bits} bits, and {report.minimum_bits} are the least{told}",
        "Use a TPM or a box with UEFI, or accept less: minimum_bits under [vault.fingerprint].",
    )


_SIBLINGS = "every box of this model has the same"


def _needed(factors: Sequence[Factor], secret: int, minimum_bits: int) -> int:
    """n less the parts that may be replaced: two of six or seven, one of three to five, none of fewer."""
    tolerated = (0, 0, 0, 1, 1, 1, 2, 2)[len(factors)]
    for spare in range(tolerated, 0, -1):
        if secret + _cheapest(factors, len(factors) - spare, True) >= minimum_bits:
            return len(factors) - spare
    return len(factors)


def _cheapest(factors: Sequence[Factor], needed: int, disk_known: bool) -> int:
    bits = sorted(0 if disk_known and KINDS[factor.slot.kind].on_disk else factor.bits for factor in factors)
    return sum(bits[:needed])


def _secret_rows(uefi: bool, hypervisor: str) -> tuple[Row, ...]:
    host = Row("the host secret", 0, True, "always wanted; on the disk, so a thief of the disk has it")
    if not uefi:
        return (
            host,
            Row("the secret in the UEFI variables", 0, False, "this box has no UEFI, or it is not to be used"),
        )
    if hypervisor:
        return (host, Row("the secret in the UEFI variables", 0, True, "always wanted; a guest's are beside its disk"))
    return (host, Row("the secret in the UEFI variables", SECRET_BITS, True, "always wanted; random, off the disk"))


def _row(slot: Slot, bits: int, reason: str, used: bool) -> Row:
    on_disk = KINDS[slot.kind].on_disk
    worth = "of no use against a thief of the disk" if on_disk else "this box's own"
    return Row(slot.words, bits, used, reason or (worth if used else "enough others"))
