"""Any stored record as a document: one row per kind that a command writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.doctor import diagnosis
from bench.document import bench_document
from bench.errors import InputError
from bench.forecast import Survey
from bench.machine import Machine
from bench.render import Document
from bench.report import BenchReport
from bench.store import kind_of, load
from quantize.document import document
from quantize.gate_report import GateReport, gate_document
from quantize.inspection import Inspection
from quantize.inspection.document import inspection_document
from quantize.report import Report


def stored_document(data: bytes, file: Path) -> Document:
    """The document of a file that `quantize`, `gate`, `bench`, `inspect` or `doctor` wrote as JSON.

    Args:
        data: What is in it.
        file: Where it lies; models that it names by their place in a result folder lie beside it.

    Raises:
        InputError: It is no record, of a kind that has no document, or does not fit its kind.
    """
    kind = kind_of(data, file)
    if kind not in DOCUMENTS:
        raise InputError(
            f"{file}: holds a {kind[:80]!r}, which cannot be rendered; known: "
            f"{', '.join(DOCUMENTS)}."
        )
    return DOCUMENTS[kind](data, file)


def relocated(report: Report, folder: Path) -> Document:
    """A report's document, naming the model by the path at which a reader finds it."""
    return document(replace(report, int8=replace(report.int8, path=folder / report.int8.path)))


def _surveyed(found: Survey) -> Document:
    return diagnosis(found.machine, found.peaks)


DOCUMENTS: dict[str, Callable[[bytes, Path], Document]] = {
    "Report": lambda data, file: relocated(load(Report, data, file), file.parent),
    "GateReport": lambda data, file: gate_document(load(GateReport, data, file)),
    "BenchReport": lambda data, file: bench_document(load(BenchReport, data, file)),
    "Inspection": lambda data, file: inspection_document(load(Inspection, data, file)),
    "Survey": lambda data, file: _surveyed(load(Survey, data, file)),
    "Machine": lambda data, file: diagnosis(load(Machine, data, file)),
}
