"""Any stored record as a document: one row per kind that a command writes; a run as files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.doctor import diagnosis
from bench.document import bench_document
from bench.errors import InputError
from bench.forecast import Survey
from bench.machine import Machine
from bench.render import Document, render
from bench.render.text import WIDTH, render_text
from bench.report import BenchReport
from bench.store import dump, kind_of, load, translated
from quantize.document import document, summary
from quantize.gate_report import GateReport, gate_document
from quantize.inspection import Inspection
from quantize.inspection.document import inspection_document
from quantize.report import Report

# Beside report.json in a result folder.
_FILES = {"report.html": "html", "report.md": "markdown", "report.junit.xml": "junit"}


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
    return document(_placed(report, folder))


def _placed(report: Report, folder: Path) -> Report:
    return replace(report, int8=replace(report.int8, path=folder / report.int8.path))


def write_reports(report: Report, folder: Path, out: Path) -> None:
    """Write a report as JSON and in every format of files.

    Args:
        report: Of a run.
        folder: Where the files go.
        out: Where they will lie.

    Raises:
        OutputError: One cannot be written.
        ResourceError: The disk is full.
    """
    shown = relocated(report, out)
    try:
        (folder / "report.json").write_bytes(dump(report))
        for name, form in _FILES.items():
            (folder / name).write_text(render(shown, form), encoding="utf-8")
    except OSError as e:
        raise translated(e, out) from e


def ending(report: Report, out: Path, columns: int | None) -> str:
    """What ends a run on a terminal, or in a log where its width is None."""
    return render_text(summary(_placed(report, out), str(out)), columns or WIDTH)


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
