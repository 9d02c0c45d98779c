from pathlib import Path

import pytest

from bench.errors import InputError
from bench.latency import Latency, Variant
from bench.machine import describe
from bench.models import Model
from bench.render import render
from bench.report import assemble
from bench.rounds import Round
from bench.store import dump
from quantize.rendering import DOCUMENTS, stored_document
from tests.fakes import MS


def test_a_bench_and_a_machine_are_rendered_from_what_was_stored(tmp_path: Path) -> None:
    model = Model(Path("m.onnx"), (), (), 17, "a" * 64, 1)
    rounds = (Round(MS, MS, (), (2 * MS,) * 64, 1, 0.0, 0.0, 0),)
    latency = Latency(Variant("m, ort", model, "ort", "cpu", 1, 1), "1", "f", rounds)
    report = assemble(describe(), [latency], [], [])
    text = render(stored_document(dump(report), tmp_path / "b.json"), "text")
    assert "m, ort is the fastest: 2 ms" in text
    text = render(stored_document(dump(describe()), tmp_path / "m.json"), "text")
    assert text.startswith("vnnify doctor")


def test_what_has_no_document_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(InputError, match="holds a 'Recipe', which cannot be rendered; known: Rep"):
        stored_document(b'{"schema": 1, "kind": "Recipe"}', file)
    with pytest.raises(InputError, match="no record of vnnify's"):
        stored_document(b"[]", file)
    with pytest.raises(InputError, match="not JSON"):
        stored_document(b"{", file)


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_a_record_that_does_not_fit_its_kind_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="Make the file again"):
        stored_document(f'{{"schema": 1, "kind": "{kind}", "odd": 1}}'.encode(), tmp_path / "x")
