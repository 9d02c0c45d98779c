from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cost import ONE_CALLER, Price, Supply, costs, money, read_prices, verdict
from bench.cost_document import rate
from bench.errors import InputError, UsageError

CPU = Price("small", 0.36, "EUR", "2026-11-22", "cpu")
GPU = Price("big", 3.6, "EUR", "2026-11-22", "cuda")
ENTRY = """
[[machine]]
name = "small"
price_per_hour = 0.36
currency = "EUR"
date = 2026-11-22
device = "cpu"
"""


def _supply(device: str, per_second: float) -> Supply:
    return Supply(f"m, {device}", device, per_second, None, "one caller")


def test_a_price_table_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(ENTRY)
    assert read_prices(file) == (CPU,)
    file.write_text(ENTRY.replace("2026-11-22", '"2026-11-22"'))
    assert read_prices(file) == (CPU,)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('currency = "EUR"\n', "", "machine 1: currency is missing"),
        ('"cpu"', '"tpu"', "device is 'tpu'"),
        ("0.36", "-1", "above 0"),
        ("0.36", "nan", "above 0"),
        ("0.36", '"0.36"', "above 0"),
        ("2026-11-22", '"today"', "date is 'today'"),
        ('"small"', "3", "name and currency"),
        ('device = "cpu"', 'device = "cpu"\ncpu = ""', "cpu is '', expected a part"),
        ("[[machine]]", "[[gpu]]", "holds gpu, expected"),
        ("[[machine]]", "[[", "not TOML"),
        ("[[machine]]", "[machine]", "expected \\[\\[machine\\]\\]"),
        (ENTRY, ENTRY + ENTRY.replace("EUR", "USD"), "EUR and USD"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(ENTRY.replace(old, new))
    with pytest.raises(InputError, match=says):
        read_prices(file)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prices(tmp_path / "no.toml")


@given(st.floats(0.01, 1e6), st.floats(0.01, 1.0))
def test_a_million_costs_the_hours_that_it_takes(per_second: float, utilisation: float) -> None:
    (found,) = costs([_supply("cpu", per_second)], [CPU, GPU], utilisation)
    hours = 1e6 / per_second / utilisation / 3600
    assert found.per_million == pytest.approx(0.36 * hours)


@pytest.mark.parametrize("utilisation", [0.0, -1.0, 1.1, float("nan")])
def test_utilisation_is_a_share(utilisation: float) -> None:
    with pytest.raises(UsageError, match="utilisation"):
        costs([], [], utilisation)


@pytest.mark.parametrize(("faster", "winner"), [(5.0, "CPU"), (20.0, "GPU")])
def test_the_verdict_weighs_speed_against_price(faster: float, winner: str) -> None:
    found = costs([_supply("cpu", 100), _supply("cuda", 100 * faster)], [CPU, GPU], 0.5)
    cheapest, worth = verdict(found, [CPU, GPU], 0.5, 20.0)
    assert "with a p99 of at most 20 ms" in cheapest
    assert "at 50% utilisation" in cheapest
    assert worth.startswith(f"The {winner} is worth it: big delivers {faster:g} times as much")
    # At the break-even price both cost the same.
    assert f"both cost the same at {0.36 * faster:.3g} EUR per GPU hour" in worth


@pytest.mark.parametrize(
    ("half_width", "begins"),
    [(0.05, "The CPU is worth it: big delivers 9 times as much (8.143 to 9.947) for 10 times"),
     (0.2, "It is not certain which of CPU and GPU is worth it, their costs overlap: big")],
)  # fmt: skip
def test_a_break_even_that_noise_could_turn_is_not_claimed(half_width: float, begins: str) -> None:
    supplies = [
        replace(_supply(d, v), low=v * (1 - half_width), high=v * (1 + half_width))
        for d, v in (("cpu", 100.0), ("cuda", 900.0))
    ]
    cheapest, worth = verdict(costs(supplies, [CPU, GPU], 1.0), [CPU, GPU], 1.0, None)
    assert worth.startswith(begins)
    assert ("may be as cheap" in cheapest) == worth.startswith("It is not certain")


def test_a_break_even_of_unequal_loads_says_so() -> None:
    cpu = replace(_supply("cpu", 100.0), how="2 streams of 1 thread")
    gpu = replace(_supply("cuda", 500.0), how=ONE_CALLER)
    _, worth = verdict(costs([cpu, gpu], [CPU, GPU], 1.0), [CPU, GPU], 1.0, None)
    assert "The GPU was timed with one caller that waits, the CPU under load" in worth
    _, worth = verdict(costs([cpu, replace(gpu, how="x")], [CPU, GPU], 1.0), [CPU, GPU], 1.0, None)
    assert "one caller" not in worth


def test_what_an_unmeasured_gpu_has_to_deliver_has_the_interval_of_the_cpu() -> None:
    supply = replace(_supply("cpu", 100.0), low=90.0, high=110.0)
    _, threshold = verdict(costs([supply], [CPU, GPU], 1.0), [CPU, GPU], 1.0, None)
    assert threshold.endswith("from 1,000 inferences per second on (900 to 1,100).")


@pytest.mark.parametrize(
    ("day", "measured", "says"),
    [
        ("2026-01-02", "", "Check old prices: big is of 2026-01-02, over 90 days before"),
        ("2026-11-01", "2027-03-01 10:00", "small is of 2026-11-22, big is of 2026-11-01"),
        ("2026-10-01", "2026-11-22 10:00", ""),
    ],
)
def test_old_prices_are_named(day: str, measured: str, says: str) -> None:
    prices = [CPU, replace(GPU, date=day)]
    found = costs([_supply("cpu", 100)], prices, 1.0)
    told = verdict(found, prices, 1.0, None, measured)
    assert (says in told[-1]) if says else ("Check" not in " ".join(told))


@pytest.mark.parametrize(("amount", "shown"), [(1234.6, "1,230 EUR"), (0.02714, "0.0271 EUR")])
def test_money_has_no_exponent(amount: float, shown: str) -> None:
    assert money(amount, CPU) == shown


def test_without_a_gpu_the_verdict_says_what_one_would_have_to_deliver() -> None:
    found = costs([_supply("cpu", 100)], [CPU, GPU], 1.0)
    sentences = verdict(found, [CPU, GPU], 1.0, None)
    assert "cheaper from 1,000 inferences per second on" in sentences[1]
    assert verdict([], [GPU], 1.0, None) == ("No measured row has a price, so there is no cost.",)


def test_an_entry_with_a_cpu_pays_for_machines_of_that_name_alone(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(ENTRY + 'cpu = "xeon 8"\n')
    (price,) = read_prices(file)
    here = Supply("a", "cpu", 100, None, "one caller", cpu="Fast Xeon 8480")
    there = Supply("b", "cpu", 100, None, "one caller", cpu="EPYC")
    assert [c.supply.name for c in costs([here, there], [price], 1.0)] == ["a"]
    assert len(costs([here, there], [CPU], 1.0)) == 2


@pytest.mark.parametrize(
    ("per_second", "shown"),
    [(14310.4, "14,310"), (1000.2, "1,000"), (121.24, "121.2"), (0.5, "0.5")],
)
def test_a_rate_has_no_exponent(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown
