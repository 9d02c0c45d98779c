"""The arithmetic of `make bench-selfcheck`; its measurements need an idle machine."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from bench.models import read_model
from tests.benchmarks.selfcheck import agree, convolutions, judge


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.01, 0.015, 0), (0.03, 0.05, 3), (-0.2, -0.1, 3), (-0.01, 0.05, 4), (-0.3, 0.3, 4)],
)
def test_only_an_interval_within_the_limit_agrees(low: float, high: float, outcome: int) -> None:
    assert judge(low, high) == outcome


@pytest.mark.parametrize(("ours", "outcome"), [(1.001, 0), (1.1, 3)])
def test_both_take_turns_and_their_medians_are_compared(
    ours: float, outcome: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    wobble: Iterator[float] = cycle([0.999, 1.001])

    def take(name: str, median: float) -> float:
        calls.append(name)
        return median * next(wobble)

    assert agree("x", lambda: take("a", ours), lambda: take("b", 1.0), 6) == outcome
    assert calls[:4] == ["a", "b", "b", "a"]
    assert f"{ours - 1:+.1%}" in capsys.readouterr().out


def test_the_model_of_the_check_is_sound(tmp_path: Path) -> None:
    assert read_model(convolutions(tmp_path / "m.onnx")).inputs[0].shape == (1, 3, 48, 48)
