"""What a million inferences cost, and from where on a GPU is the cheaper machine.

Cost per million = price per hour / (3600 · throughput · utilisation) · 10⁶. Prices are the user's:
vnnify ships none, because they differ by region, contract and day.
"""

import contextlib
import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UsageError
from bench.escape import number
from bench.store import read_toml

_KEYS = {"name", "price_per_hour", "currency", "date", "device"}
_FRESH_DAYS = 90
_CPU = "cpu"
"""The key that an entry may have: which machines it is for."""


@dataclass(frozen=True, slots=True)
class Price:
    """One machine's price.

    Attributes:
        name: Of the machine, as the user calls it.
        per_hour: In `currency`.
        currency: As the user writes it.
        date: On which it was true, ISO 8601.
        device: Whose rows it pays for: "cpu" or "cuda".
        cpu: Part of the name of the CPU of the machines that it is for; empty for all of them.
    """

    name: str
    per_hour: float
    currency: str
    date: str
    device: str
    cpu: str = ""


ONE_CALLER = "one caller that waits"
"""The load of a supply that was timed without any."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What one way to run a model delivers.

    Attributes:
        name: Of the variant, and the machine if it is another one.
        device: "cpu" or "cuda".
        per_second: Samples.
        p99_ms: Of its latency there; None if it is not known.
        how: Under which load, in words.
        cpu: Of the machine, as it names itself.
        low: Lower end of the 95 % interval of `per_second` over processes; None with one process.
        high: Upper end.
    """

    name: str
    device: str
    per_second: float
    p99_ms: float | None
    how: str
    cpu: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; of no width where it is not known."""
        known = self.low is not None and self.high is not None
        return (self.low or 0.0, self.high or 0.0) if known else (self.per_second, self.per_second)


@dataclass(frozen=True, slots=True)
class Cost:
    """A supply at a price.

    Attributes:
        supply: What runs.
        price: What the machine costs.
        per_million: Cost of a million samples, in the price's currency.
    """

    supply: Supply
    price: Price
    per_million: float

    @property
    def ends(self) -> tuple[float, float]:
        """What it costs at the ends of the supply's interval, the lower cost first."""
        slow, fast = self.supply.ends
        return (
            self.per_million * self.supply.per_second / fast,
            self.per_million * self.supply.per_second / slow,
        )


def read_prices(path: Path) -> tuple[Price, ...]:
    """Read a price table: `[[machine]]` with name, price_per_hour, currency, date, device.

    Raises:
        InputError: It is missing, no TOML, or an entry lacks something or makes no sense.
    """
    found = read_toml(path, str(path), InputError)
    entries = found.get("machine")
    if not isinstance(entries, list) or not entries or found.keys() != {"machine"}:
        raise InputError(
            f"{path}: holds {', '.join(found) or 'nothing'}, expected [[machine]] entries with "
            f"{', '.join(sorted(_KEYS))}."
        )
    prices = tuple(_price(entry, f"{path}: machine {i + 1}") for i, entry in enumerate(entries))
    currencies = sorted({p.currency for p in prices})
    if len(currencies) > 1:
        raise InputError(
            f"{path}: has prices in {' and '.join(currencies)}, which cannot be compared. "
            "Convert them to one currency."
        )
    return prices


def _price(entry: Any, where: str) -> Price:
    keys = entry.keys() if isinstance(entry, dict) else set()
    if keys - {_CPU} != _KEYS:
        odd = sorted(_KEYS ^ (keys - {_CPU}))
        raise InputError(
            f"{where}: {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} missing or unknown; "
            f"expected {', '.join(sorted(_KEYS))}, and {_CPU} where it is for one kind of machine."
        )
    price, date = entry["price_per_hour"], entry["date"]
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 < price < math.inf:
        raise InputError(f"{where}: price_per_hour is {price!r}, expected a number above 0.")
    if isinstance(date, str):
        with contextlib.suppress(ValueError):
            date = datetime.date.fromisoformat(date)
    if not isinstance(date, datetime.date):
        raise InputError(f"{where}: date is {date!r}, expected one such as 2026-11-22.")
    if entry["device"] not in ("cpu", "cuda"):
        raise InputError(f"{where}: device is {entry['device']!r}, expected 'cpu' or 'cuda'.")
    if not all(isinstance(entry[k], str) and entry[k] for k in ("name", "currency")):
        raise InputError(f"{where}: name and currency have to be text.")
    cpu = entry.get(_CPU, "")
    if not isinstance(cpu, str) or (_CPU in entry and not cpu.strip()):
        raise InputError(f"{where}: cpu is {cpu!r}, expected a part of a CPU's name.")
    return Price(entry["name"], float(price), entry["currency"], str(date), entry["device"], cpu)


def pays_for(price: Price, supply: Supply) -> bool:
    """Whether a price is that of the machine on which something was measured."""
    return price.device == supply.device and price.cpu.casefold() in supply.cpu.casefold()


def costs(
    supplies: Sequence[Supply], prices: Sequence[Price], utilisation: float
) -> tuple[Cost, ...]:
    """Every supply at every price of its device and CPU, the cheapest first.

    Args:
        supplies: What runs.
        prices: Of machines.
        utilisation: Share of the time in which there is work, above 0 and at most 1.

    Raises:
        UsageError: `utilisation` is not such a share.
    """
    if not 0 < utilisation <= 1:
        raise UsageError(f"utilisation is {utilisation:g}, expected above 0 and at most 1.")
    found = [
        Cost(s, p, p.per_hour / (3600 * s.per_second * utilisation) * 1e6)
        for s in supplies
        for p in prices
        if pays_for(p, s)
    ]
    return tuple(sorted(found, key=lambda c: c.per_million))


def verdict(
    found: Sequence[Cost],
    prices: Sequence[Price],
    utilisation: float,
    p99_ms: float | None,
    measured: str = "",
) -> tuple[str, ...]:
    """Plain sentences: what is the cheapest, and from where on a GPU would be.

    Args:
        found: From `costs`, the cheapest first.
        prices: All that there are.
        utilisation: As for `costs`.
        p99_ms: The latency target that every throughput holds; None for none.
        measured: Day of the measurement, ISO 8601; prices much older than it are named.
    """
    if not found:
        return ("No measured row has a price, so there is no cost.",)
    best = found[0]
    target = "" if p99_ms is None else f" with a p99 of at most {p99_ms:g} ms"
    sentences = [
        (
            f"Cheapest{target}: {best.supply.name} on {best.price.name}, "
            f"{money(best.per_million, best.price)} per million inferences at "
            f"{utilisation:.0%} utilisation{_as_cheap(found)}."
        )
    ]
    cpu = next((c for c in found if c.supply.device == "cpu"), None)
    gpu = next((c for c in found if c.supply.device == "cuda"), None)
    if cpu is not None and gpu is not None:
        sentences.append(_measured_break_even(cpu, gpu))
    elif cpu is not None:
        # A GPU that was not measured: what it would have to deliver.
        sentences += [_unmeasured_break_even(cpu, p) for p in prices if p.device == "cuda"]
    return (*sentences, *_old_prices(prices, measured))


def money(amount: float, price: Price) -> str:
    """`1,234 EUR`, `0.0271 EUR`: no exponent."""
    return f"{number(float(f'{amount:.3g}'))} {price.currency}"


def _as_cheap(found: Sequence[Cost]) -> str:
    """The next one, where the intervals of the throughputs do not tell them apart."""
    best, *others = found
    rival = next(iter(others), None)
    if rival is None or rival.ends[0] > best.ends[1]:
        return ""
    return f"; {rival.supply.name} on {rival.price.name} may be as cheap: their intervals overlap"


def _measured_break_even(cpu: Cost, gpu: Cost) -> str:
    slow, fast = gpu.supply.ends[0] / cpu.supply.ends[1], gpu.supply.ends[1] / cpu.supply.ends[0]
    faster = gpu.supply.per_second / cpu.supply.per_second
    dearer = gpu.price.per_hour / cpu.price.per_hour
    even = cpu.price.per_hour * faster
    if cpu.ends[0] <= gpu.ends[1] and gpu.ends[0] <= cpu.ends[1]:
        worth = "It is not certain which of CPU and GPU is worth it, their costs overlap"
    else:
        worth = f"The {'CPU' if cpu.per_million <= gpu.per_million else 'GPU'} is worth it"
    return (
        f"{worth}: {gpu.price.name} delivers {faster:.3g} times as much"
        f"{_between(slow, fast)} for {dearer:.3g} times the price of {cpu.price.name}; both cost "
        f"the same at {money(even, gpu.price)} per GPU hour"
        f"{_between(cpu.price.per_hour * slow, cpu.price.per_hour * fast)}."
        f"{_unequal_loads(cpu.supply, gpu.supply)}"
    )


def _unequal_loads(cpu: Supply, gpu: Supply) -> str:
    """A word where one of them was loaded and the other was not, which delivers less."""
    if (cpu.how == ONE_CALLER) == (gpu.how == ONE_CALLER):
        return ""
    idle, busy = ("CPU", "GPU") if cpu.how == ONE_CALLER else ("GPU", "CPU")
    return (
        f" The {idle} was timed with {ONE_CALLER}, the {busy} under load: --streams for both "
        f"would show what the {idle} delivers."
    )


def _unmeasured_break_even(cpu: Cost, gpu: Price) -> str:
    times = gpu.per_hour / cpu.price.per_hour
    low, high = (times * end for end in cpu.supply.ends)
    return (
        f"{gpu.name} was not measured; at {money(gpu.per_hour, gpu)} per hour it is cheaper from "
        f"{cpu.supply.per_second * times:,.0f} inferences per second on{_between(low, high)}."
    )


def _between(low: float, high: float) -> str:
    """` (11.9 to 13.2)`; nothing where one process each gave no interval."""
    return "" if low == high else f" ({number(low)} to {number(high)})"


def _old_prices(prices: Sequence[Price], measured: str) -> Iterator[str]:
    days = {p.name: datetime.date.fromisoformat(p.date) for p in prices}
    newest = max(days.values())
    if measured:
        newest = max(newest, datetime.date.fromisoformat(measured[:10]))
    old = [f"{name} is of {day}" for name, day in days.items() if (newest - day).days > _FRESH_DAYS]
    if old:
        yield (
            f"Check old prices: {', '.join(old)}, over {_FRESH_DAYS} days before the measurement "
            "or the newest price."
        )
