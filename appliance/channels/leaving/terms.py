"""What every destination may be told: what leaves for it, how it is masked, and what waits while its line is down."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from appliance.config.secrets import VaultName
from appliance.masking.masker import Policy

Forwarded = Literal["alarm", "state", "score", "reading", "block", "label", "audit", "device"]


class Terms(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings that all channels share."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9][a-z0-9-]{0,39})?$",
            description="What it is called in `millwright forward` and what its outbox is named by; empty: as the "
            "channel. Needed where there are several of one kind.",
        ),
    ] = ""
    kinds: Annotated[list[Forwarded], Meta(description="What leaves.")] = field(
        default_factory=lambda: ["alarm", "state", "score", "reading"]
    )
    assets: Annotated[
        list[str],
        Meta(max_length=1000, description="Of which assets: `line1/pump`, `line1/#` for all below, `#` for all."),
    ] = field(default_factory=lambda: ["#"])
    budget_mb: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Disk space for what waits while the line is down.")
    ] = 512
    when_full: Annotated[
        Literal["thin", "drop-oldest", "drop-newest"],
        Meta(
            description="What gives way then: every second reading of each asset, down to one of 32, before any is "
            "dropped; or readings whole, from one end. Alarms never do."
        ),
    ] = "thin"
    catch_up_per_s: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="After an outage so many readings and scores a second at most, beside as many as come in "
            "meanwhile; 0: as fast as the line takes them.",
        ),
    ] = 5000
    answer_ms: Annotated[
        int,
        Meta(
            ge=20,
            le=600_000,
            description="A destination that answers nothing for so long is shown as offline; all waits.",
        ),
    ] = 200
    probe_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="While nothing leaves, an MQTT line is asked so often whether it holds: with `answer_ms`, how "
            "soon one that died without a word is shown as offline. 0: never; MQTT's keepalive is left (30 s).",
        ),
    ] = 5.0
    give_up_s: Annotated[
        float, Meta(ge=0.5, le=3600, description="And after so long the line is hung up and opened anew.")
    ] = 15.0
    masking: Annotated[
        Policy,
        Meta(
            description="What becomes of personal data: `kinds`, by kind (`resident-id`, `passport`, `phone`, "
            "`bank-card`, `e-mail`): `mask` (what is left out), `token` or `keep`; `fields`, by a field's path "
            "(`message`, `*.by`): the same for all its text."
        ),
    ] = field(default_factory=Policy)
    token_key: Annotated[
        VaultName | None,
        Meta(description="The secret of 64 bytes that tokens are made with, where masking asks for any."),
    ] = None


def labelled(kind: str, terms: Terms) -> str:
    """The name it goes by."""
    return terms.name or kind.replace("_", "-")


def shared() -> set[str]:
    return {one.encode_name for one in msgspec.structs.fields(Terms)}
