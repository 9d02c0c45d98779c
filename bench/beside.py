"""What a user lays beside a measurement: other runs, and prices; read before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cost import Price, costs, read_prices
from bench.errors import InputError
from bench.others import Other, changes, refuse_unlike_run
from bench.report import BenchReport
from bench.store import load


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

    def lay(self, report: BenchReport, *, command: str, p99_ms: float | None) -> BenchReport:
        """Put it into a report.

        Raises:
            InputError: A run measured something else; the message names the field.
        """
        for other in self.merged:
            refuse_unlike_run(other, report.latencies)
        if self.earlier is not None:
            changes(self.earlier, report.machine, report.latencies)
        return replace(
            report,
            merged=self.merged,
            earlier=self.earlier,
            prices=self.prices,
            utilisation=self.utilisation,
            p99_ms=p99_ms,
            command=command,
        )


def _other(path: Path) -> Other:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}.") from e
    found = load(BenchReport, data, path)
    return Other(path.name, found.machine, found.latencies, found.loads)
