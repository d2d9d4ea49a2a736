"""What the detector may be told, and the stages that follow from it."""

from typing import Annotated

from msgspec import Meta, Struct

from appliance.events.schema import Stage

MAX_WIDTH = 1024  # channels of one asset


class DetectorSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One configuration for all assets. Rows are readings of an asset; only a person's patience is in hours."""

    hop: Annotated[int, Meta(ge=1, le=1024, description="Judge an asset once every so many rows.")] = 1
    max_assets: Annotated[int, Meta(ge=1, le=100_000, description="Assets known at once.")] = 2000
    max_channels: Annotated[int, Meta(ge=1, le=1_000_000, description="Channels of all assets together.")] = 20_000
    learn_rows: Annotated[int, Meta(ge=100, le=65_536, description="Rows of an asset that show its normal state.")] = (
        400
    )

    accept_periods: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Learning periods after which a standing alarm's state is learned; 0: never.",
        ),
    ] = 6
    accept_hours: Annotated[
        float, Meta(ge=0, le=87_600, description="And no sooner than this, by the readings' own times.")
    ] = 24.0

    @property
    def collect_rows(self) -> int:
        """Rows that are too few to say anything."""
        return min(60, max(30, self.learn_rows * 3 // 20))

    @property
    def warn_rows(self) -> int:
        """Rows from which a crossing is a warning."""
        return self.learn_rows * 3 // 5

    def stage(self, rows: int) -> Stage:
        """Of an asset that had learned from `rows` rows."""
        if rows >= self.learn_rows:
            return Stage.ALARMING
        if rows >= self.warn_rows:
            return Stage.WARNING
        return Stage.LEARNING if rows >= self.collect_rows else Stage.COLLECTING

    def lessons(self) -> list[int]:
        """The rows at which the statistics are computed: ever rarer, at each change of stage and at the end."""
        rows = [self.warn_rows, (self.warn_rows + self.learn_rows) // 2, self.learn_rows]
        row = self.collect_rows
        while row < self.warn_rows:
            rows.append(row)
            row = row * 5 // 3
        return sorted(rows)
