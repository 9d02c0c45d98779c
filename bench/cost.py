"""What a million inferences cost, and from where on a GPU is the cheaper machine.

Cost per million = price per hour / (3600 · throughput · utilisation) · 10⁶. Prices are the user's:
vnnify ships none, because they differ by region, contract and day.
"""

import contextlib
import datetime
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UsageError

_KEYS = {"name", "price_per_hour", "currency", "date", "device"}
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
    """

    name: str
    device: str
    per_second: float
    p99_ms: float | None
    how: str
    cpu: str = ""


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


def read_prices(path: Path) -> tuple[Price, ...]:
    """Read a price table: `[[machine]]` with name, price_per_hour, currency, date, device.

    Raises:
        InputError: It is missing, no TOML, or an entry lacks something or makes no sense.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: is not TOML: {e}.") from e
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
    found: Sequence[Cost], prices: Sequence[Price], utilisation: float, p99_ms: float | None
) -> tuple[str, ...]:
    """Plain sentences: what is the cheapest, and from where on a GPU would be."""
    if not found:
        return ("No measured row has a price, so there is no cost.",)
    best = found[0]
    target = "" if p99_ms is None else f" with a p99 of at most {p99_ms:g} ms"
    sentences = [
        (
            f"Cheapest{target}: {best.supply.name} on {best.price.name}, "
            f"{_money(best.per_million, best.price)} per million inferences at "
            f"{utilisation:.0%} utilisation."
        )
    ]
    cpu = next((c for c in found if c.supply.device == "cpu"), None)
    gpu = next((c for c in found if c.supply.device == "cuda"), None)
    if cpu is not None and gpu is not None:
        sentences.append(_measured_break_even(cpu, gpu))
    elif cpu is not None:
        # A GPU that was not measured: what it would have to deliver.
        sentences += [
            f"{p.name} was not measured; at {_money(p.per_hour, p)} per hour it is cheaper from "
            f"{cpu.supply.per_second * p.per_hour / cpu.price.per_hour:,.0f} inferences per second "
            "on."
            for p in prices
            if p.device == "cuda"
        ]
    return tuple(sentences)


def _measured_break_even(cpu: Cost, gpu: Cost) -> str:
    faster = gpu.supply.per_second / cpu.supply.per_second
    dearer = gpu.price.per_hour / cpu.price.per_hour
    even = cpu.price.per_hour * faster
    worth = "The CPU is worth it" if cpu.per_million <= gpu.per_million else "The GPU is worth it"
    return (
        f"{worth}: {gpu.price.name} delivers {faster:.3g} times as much for {dearer:.3g} times the "
        f"price of {cpu.price.name}; both cost the same at {_money(even, gpu.price)} per GPU hour."
    )


def _money(amount: float, price: Price) -> str:
    return f"{amount:.3g} {price.currency}"
