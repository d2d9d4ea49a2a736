"""What `delta` measured, as text for a terminal, as Markdown and as plain values, and which goals that meets."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.benchmarks.figures import Goal
from tools.benchmarks.pairs import Pair

OURS, WHOLE = "ours", "zstd whole"
DECODERS = ("kernel", "numpy")
MB = 1e6
KERNEL_MBS, NUMPY_MBS, OVERHEAD, ABOVE_MIB = 40, 12, 1024, 64  # goals


@dataclass
class Run:
    """What one tool did with one pair; bytes, seconds of CPU in user mode, bytes."""

    size: int
    make_s: float
    apply_s: float
    make_peak: int
    apply_peak: int


@dataclass
class Result:
    pair: Pair
    new_size: int
    runs: dict[str, Run] = field(default_factory=dict)
    envelope: int = 0  # bytes of our header, manifest and index
    bounds: dict[str, float] = field(default_factory=dict)  # see `bounds`
    other_way: bool = False  # whether a general way was smaller than the codec's

    @property
    def best(self) -> str:
        return min((name for name in self.runs if name != OURS), key=lambda name: self.runs[name].size)

    @property
    def ratio(self) -> float:
        """What every patch begins with is no part of it: it has a goal of its own."""
        return (self.runs[OURS].size - self.envelope) / self.runs[self.best].size

    @property
    def goal(self) -> Goal:
        return Goal(f"{self.pair.name}, x best tool", self.pair.bound, self.ratio, at_most=True)


@dataclass
class Report:
    """`rates` by decoder: pairs and MB/s; `large` see `delta._large`."""

    results: list[Result]
    rates: dict[str, list[tuple[str, float]]]
    overhead: int
    large: Mapping[str, float] | None
    seconds: float = 0.0
    only: Sequence[str] = ()  # words of the names of pairs; all where there are none
    left_out: int = 0  # pairs there was no time for

    def goals(self) -> list[Goal]:
        above = self.large["apply_above_interpreter"] / (1 << 20) if self.large else None
        slowest = {name: min((rate for _, rate in rates), default=None) for name, rates in self.rates.items()}
        largest = max((result.envelope for result in self.results), default=None)
        return [
            *(result.goal for result in self.results),
            Goal("slowest pair, MB/s applied, kernel", KERNEL_MBS, slowest["kernel"]),
            Goal("slowest pair, MB/s applied, numpy alone", NUMPY_MBS, slowest["numpy"]),
            Goal("one byte changed, bytes of the patch", OVERHEAD, self.overhead, at_most=True),
            Goal("largest envelope, bytes", OVERHEAD, largest, at_most=True),
            Goal("2 GB model, MiB above the bare interpreter", ABOVE_MIB, above, at_most=True),
        ]

    def text(self) -> str:
        tables = [f"{title}\n{_aligned(rows)}" for title, rows in self._tables()]
        return "\n\n".join([*tables, "\n".join(goal.line() for goal in self.goals())])

    def markdown(self) -> str:
        return (
            "\n\n".join([self._preface(), *(f"## {title}\n\n{_ruled(rows)}" for title, rows in self._tables())]) + "\n"
        )

    def _preface(self) -> str:
        missed = [goal.name.removesuffix(", x best tool") for goal in self.goals() if goal.met is False]
        some = f"\nOnly pairs named after: {', '.join(self.only)}; no others were measured." if self.only else ""
        some += f"\nThere was no time for {self.left_out} more pairs." if self.left_out else ""
        return (
            "# What patches cost\n\n"
            "Written by `tools/bench delta --results`; how it is measured says the head of `tools/benchmarks/delta.py`."
            "\n`x best` leaves our envelope out (header, manifest, index), which has a goal of its own."
            f"\nMeasured on {platform.machine()} in {self.seconds / 60:.0f} minutes, and before by runs of this codec "
            "that were\nbroken off, where a folder kept them; while other work went on: times are of the CPU, a core's."
            f"{some}\n\n"
            "cnn and gpt are small networks, trained for a moment: low ranks and tables weigh more in their patches "
            "than in\nthose of larger ones. wide has as many weights as a ResNet-18, and is trained as cnn is.\n\n"
            f"Goals missed: {', '.join(missed) if missed else 'none'}."
        )

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        names = list(self.results[0].runs) if self.results else []
        yield "Sizes, kB", self._sizes(names)
        yield "How far from what is possible, kB", self._possible()
        yield "Where our bytes are, kB", self._parts()
        shown: list[tuple[str, Callable[[Run], str]]] = [
            ("Seconds of CPU to make", lambda run: f"{run.make_s:.1f}"),
            ("Seconds of CPU to apply", lambda run: f"{run.apply_s:.2f}"),
            ("Peak memory making, MB", lambda run: f"{run.make_peak / MB:.0f}"),
            ("Peak memory applying, MB", lambda run: f"{run.apply_peak / MB:.0f}"),
        ]
        for title, told in shown:
            rows = [[result.pair.name, *(told(result.runs[name]) for name in names)] for result in self.results]
            yield title, [["pair", *names], *rows]
        rates = zip(*self.rates.values(), strict=True)
        rows = [[pair[0][0], *(f"{rate:.0f}" for _, rate in pair)] for pair in rates]
        yield "New MB applied in a second of CPU, on one core", [["pair", *self.rates], *rows]
        yield "Other", self._others()

    def _sizes(self, names: Sequence[str]) -> list[list[str]]:
        rows = [["pair", "new", *names, "x best", "goal", ""]]
        for result in self.results:
            sizes = [f"{result.runs[name].size / 1000:,.1f}" for name in names]
            verdict = "met" if result.goal.met else "missed"
            told = [f"{result.ratio:.3f}", f"{result.pair.bound:.2f}", verdict]
            rows.append([result.pair.name, f"{result.new_size / 1000:,.0f}", *sizes, *told])
        return rows

    def _possible(self) -> list[list[str]]:
        rows = [
            ["pair", "weights moved", "goal", "ours", "residuals' entropy", "if nothing is predicted", "what it is"]
        ]
        for result in self.results:
            goal = result.pair.bound * result.runs[result.best].size
            told = [goal, result.runs[OURS].size, result.bounds.get("left"), result.bounds.get("law")]
            moved = "" if result.pair.moved is None else f"{result.pair.moved:.1%}"
            sizes = ["" if size is None else f"{size / 1000:,.1f}" for size in told]
            rows.append([result.pair.name, moved, *sizes, result.pair.told])
        return rows

    def _parts(self) -> list[list[str]]:
        """Of the pairs whose patch the codec made."""
        rows = [["pair", "residuals", "classes, factors, low ranks", "context tables", "envelope", "coding"]]
        for result in self.results:
            if result.bounds and not result.other_way:
                parts = [*(result.bounds[name] for name in ("left", "told", "tables")), float(result.envelope)]
                parts.append(result.runs[OURS].size - sum(parts))
                rows.append([result.pair.name, *(f"{part / 1000:,.1f}" for part in parts)])
        return rows

    def _others(self) -> list[list[str]]:
        rows = [["", "goal", "measured", ""]]
        for goal in self.goals()[len(self.results) :]:
            measured = "not measured" if goal.measured is None else f"{goal.measured:.4g}"
            verdict = {True: "met", False: "missed", None: ""}[goal.met]
            rows.append([goal.name, f"{'<=' if goal.at_most else '>='} {goal.bound:g}", measured, verdict])
        return rows + [["2 GB model, " + name, "", f"{value:,.1f}", ""] for name, value in (self.large or {}).items()]

    def plain(self) -> dict[str, Any]:
        return {
            "pairs": {
                result.pair.name: {
                    "new": result.new_size,
                    "best": result.best,
                    "ratio": result.ratio,
                    "moved": result.pair.moved,
                    "bounds": result.bounds,
                    "tools": {name: vars(run) for name, run in result.runs.items()},
                }
                for result in self.results
            },
            "rates": {name: dict(rates) for name, rates in self.rates.items()},
            "overhead": self.overhead,
            "large": self.large,
            "seconds": self.seconds,
            "goals": [goal.plain() for goal in self.goals()],
        }


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def _ruled(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest])
