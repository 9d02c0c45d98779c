"""What a replay says of its verdict; the replay as a whole stands in test_pipeline.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from quantize.looks import Look
from quantize.replaying import early_note


@pytest.mark.parametrize(
    ("done", "said"), [(500, "judged by 500 of 1,000 samples"), (1000, None), (None, None)]
)
def test_only_a_verdict_on_a_part_of_the_samples_says_so(
    done: int | None, said: str | None
) -> None:
    verdict: Any = SimpleNamespace(look=None if done is None else Look(done, (500, 1000), 0.025))
    note = early_note(verdict)
    assert note is None if said is None else str(note).startswith(said)
