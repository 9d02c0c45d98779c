import pytest

from bench.errors import UsageError
from bench.options import parse_counts, parse_names, parse_p99, parse_rates, parse_streams


def test_lists_keep_their_order_and_say_things_once() -> None:
    assert parse_names(" b, a,b,") == ("b", "a")
    assert parse_counts("--batch", "8,1,8") == (8, 1)
    assert parse_rates("50, 0.5") == (50.0, 0.5)


def test_streams_are_numbers_or_looked_for() -> None:
    assert parse_streams("") == ()
    assert parse_streams("auto") == (0,)
    assert parse_streams("1,4") == (1, 4)


@pytest.mark.parametrize(
    ("text", "ms"), [("", None), ("20ms", 20.0), ("0.5s", 500.0), ("750us", 0.75)]
)
def test_a_latency_carries_its_unit(text: str, ms: float | None) -> None:
    assert parse_p99(text) == ms


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", "²"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch takes whole numbers of at least 1"):
        parse_counts("--batch", text)


@pytest.mark.parametrize("text", ["0", "nan", "inf", "x"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rate"):
        parse_rates(text)


@pytest.mark.parametrize("text", ["20", "0ms", "20 ms", "-1ms", "1h"])
def test_times_without_a_unit_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--p99"):
        parse_p99(text)
