"""What a user lays beside a measurement: other runs, and prices; read before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cost import Price, costs, read_prices
from bench.machine import Machine
from bench.others import Other, Row, refuse_unlike_earlier, refuse_unlike_run
from bench.report import GPU, BenchReport
from bench.store import load, read_bytes


@dataclass(frozen=True, slots=True)
class Beside:
    """Everything that is laid beside.

    Attributes:
        merged: Runs on other machines.
        earlier: A run on this one.
        prices: Of machines.
        utilisation: Share of the time in which there is work.
    """

    merged: tuple[Other, ...] = ()
    earlier: Other | None = None
    prices: tuple[Price, ...] = ()
    utilisation: float = 1.0

    @property
    def has_runs(self) -> bool:
        """Whether there are other runs."""
        return bool(self.merged) or self.earlier is not None

    @classmethod
    def read(
        cls,
        merge: Sequence[Path],
        compare: Path | None,
        prices: Path | None,
        utilisation: float,
    ) -> "Beside":
        """Read the files.

        Raises:
            InputError: One is missing or holds something else.
            UsageError: `utilisation` is no share.
        """
        costs((), (), utilisation)  # Refuses a share that is none.
        return cls(
            tuple(_other(path) for path in merge),
            None if compare is None else _other(compare),
            () if prices is None else read_prices(prices),
            utilisation,
        )

    def refuse_unlike(self, machine: Machine, rows: Sequence[Row]) -> None:
        """Refuse runs that cannot stand beside these rows, measured or planned.

        Raises:
            InputError: A run measured something else; the message names the field.
        """
        for other in self.merged:
            refuse_unlike_run(other, rows)
        if self.earlier is not None:
            refuse_unlike_earlier(self.earlier, machine, rows)

    def lay(
        self, report: BenchReport, *, command: str, measured: str, p99_ms: float | None
    ) -> BenchReport:
        """Put it into a report.

        Args:
            report: What was measured.
            command: As it was typed.
            measured: When: ISO 8601, UTC.
            p99_ms: What latency has to hold.

        Raises:
            InputError: A run measured something else; the message names the field.
        """
        self.refuse_unlike(report.machine, report.latencies)
        on_gpu = any(x.variant.device == "cuda" for o in self.merged for x in o.latencies)
        return replace(
            report,
            # What was measured elsewhere is not missing.
            missing=tuple(m for m in report.missing if not (on_gpu and m.name == GPU)),
            measured=measured,
            merged=self.merged,
            earlier=self.earlier,
            prices=self.prices,
            utilisation=self.utilisation,
            p99_ms=p99_ms,
            command=command,
        )


def _other(path: Path) -> Other:
    found = load(BenchReport, read_bytes(path), path)
    return Other(path.name, found.machine, found.latencies, found.loads)
