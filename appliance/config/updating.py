"""Settings of how new models come in, and by what they are compared."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Span = Annotated[
    str,
    Meta(
        pattern=r"^((mon|tue|wed|thu|fri|sat|sun) )*([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$",
        description="`22:00-05:30`, `sat sun 00:00-24:00`",
    ),
]


class Update(Struct, frozen=True, forbid_unknown_fields=True):
    """How a new model comes in, or a new system: from where and when. By what a model is judged: beside the one that
    runs it is compared, and after it took over the one before is compared with it; what goes beyond these criteria is
    refused, or rolled back."""

    sources: Annotated[
        list[str],
        Meta(
            max_length=16,
            description="Repositories, the first one first: `https://...`, a folder, or a pattern such as `/media/*/*` "
            "for sticks, which are found when they are plugged in. Empty: only bundles that are on this box.",
        ),
    ] = field(default_factory=list)
    fleet: Annotated[
        str, Meta(pattern=r"^([a-z0-9][a-z0-9_-]{0,63})?$", description="The fleet that this box belongs to.")
    ] = ""
    labels: Annotated[
        dict[str, str], Meta(max_length=16, description='What campaigns choose by: `{site = "berlin"}`.')
    ] = field(default_factory=dict)
    device: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]{0,63})?$",
            description="This box's name on receipts, and what campaigns draw lots by; empty: an id of its own.",
        ),
    ] = ""
    automatic: Annotated[
        Literal["campaigns", "newest", "never"],
        Meta(
            description="What is taken by itself: what a campaign says is for this box; or, besides, the newest "
            "version of what no campaign speaks of; or nothing."
        ),
    ] = "campaigns"
    system: Annotated[
        Literal["newest", "never"],
        Meta(
            description="And of the whole system: the newest release of the sources, looked for about every hour, with "
            "the restart into it; or nothing."
        ),
    ] = "never"
    poll_minutes: Annotated[
        float,
        Meta(ge=0, le=43_200, description="The sources are looked at so often, a fifth more or less. 0: when asked."),
    ] = 60.0
    windows: Annotated[
        list[Span],
        Meta(
            max_length=64,
            description="When this box begins to take a model or a system by itself, and when it changes to it, by its "
            "own time of day: `22:00-05:30`, `sat sun 00:00-24:00`. Empty: at any time.",
        ),
    ] = field(default_factory=list)
    never: Annotated[
        list[Span],
        Meta(max_length=64, description="When it does not, a shift: `mon fri 06:00-14:00`. Wins over `windows`."),
    ] = field(default_factory=list)
    budget_mb: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Disk space that one update may take on its way in.")
    ] = 4096
    root: Annotated[
        str,
        Meta(
            description="The file whose keys are trusted first, `1.root.json`; empty: the one that came with the "
            "system, `/usr/share/millwright/root.json`."
        ),
    ] = ""
    ca_file: Annotated[str, Meta(description="Certificates that sign those of https sources; empty: the system's.")] = (
        ""
    )
    shadow_minutes: Annotated[float, Meta(ge=0, le=525_600, description="A candidate is compared for so long.")] = 60.0
    watch_minutes: Annotated[
        float, Meta(ge=0, le=525_600, description="One that took over is watched for so long.")
    ] = 1440.0
    looks: Annotated[
        int, Meta(ge=1, le=10_000_000, description="And so many looks at assets are compared, at least, each time.")
    ] = 300
    agreement: Annotated[
        float, Meta(ge=0, le=1, description="Share of the looks that both models judge alike, at least.")
    ] = 0.97
    score_ratio: Annotated[
        float, Meta(ge=1, le=1000, description="Between the medians, and the 95th of 100, of their scores, at most.")
    ] = 2.5
    alarm_ratio: Annotated[
        float, Meta(ge=1, le=1000, description="Between the alarms that each would raise, at most; three are free.")
    ] = 1.5
    residual_ratio: Annotated[
        float, Meta(ge=1, le=1000, description="Of what the candidate cannot reconstruct to what the other cannot.")
    ] = 1.25
    latency_ratio: Annotated[float, Meta(ge=1, le=1000, description="Of the times that a window takes.")] = 3.0
    memory_mb: Annotated[int, Meta(ge=1, le=1_000_000, description="Memory that the candidate may take.")] = 512


class Contest(Struct, frozen=True, forbid_unknown_fields=True):
    """A second model that judges a share of the assets, to be compared with the first one: `millwright contest`."""

    model: Annotated[
        str,
        Meta(description="A name of `millwright models list`, `name@version` or a hash. Empty: there is no contest."),
    ] = ""
    share_percent: Annotated[
        float, Meta(ge=0, le=100, description="Of the assets, that it judges; which ones is drawn by `salt`.")
    ] = 50.0
    salt: Annotated[str, Meta(max_length=64, description="Another text is another draw, and begins anew.")] = "1"
