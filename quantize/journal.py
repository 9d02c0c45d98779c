"""Journal: what finished steps found, kept beside the output so that a killed run goes on.

    kind + key (digests of models, samples, options) + context (versions, CPU) ─▶ one file, renamed

An entry is named by the digest of everything that it depends on, so nothing in the folder can be
out of date: what does not fit is not found. Losing an entry costs time and nothing else; a journal
that cannot be written therefore never ends a run.
"""

import hashlib
import json
import logging
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.errors import InputError, OutputError, ResourceError
from bench.machine import describe
from bench.store import dump, load
from quantize.calibrate import Calibration
from quantize.evaluate import Evaluation
from quantize.evidence import Evidence, read_rows, write_rows
from quantize.histograms import TensorStatistics
from quantize.job import Limits
from quantize.metric import Metric
from quantize.outputs import OutputStore

logger = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Journal:
    """A folder of results of finished steps.

    Attributes:
        folder: Made with the first entry; None remembers nothing.
        context: What every entry depends on besides its key.
    """

    folder: Path | None = None
    context: str = ""

    def count(self) -> int:
        """How many results are there, whether they fit this run or not."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        return sum(1 for f in self.folder.iterdir() if f.suffix in (".json", ".zip"))

    def file(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path | None:
        """Where the entry of a key lies or would lie; its folder exists."""
        if self.folder is None:
            return None
        text = json.dumps([kind, self.context, key], sort_keys=True, default=str)
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"

    def recall(self, cls: type[R], kind: str, key: Mapping[str, Any]) -> R | None:
        """The record that was kept under this key, if there is a sound one."""
        file = self.file(kind, key, ".json")
        if file is None or not file.is_file():
            return None
        try:
            return load(cls, file.read_bytes(), file)
        except (InputError, OSError) as e:
            logger.info("%s is made again: %s", kind, e)
            return None

    def keep(self, record: object, kind: str, key: Mapping[str, Any]) -> None:
        """Keep a record of plain values."""
        file = self.file(kind, key, ".json")
        if file is None:
            return
        with not_fatal(kind), renamed(file) as beside:
            beside.write_bytes(dump(record))

    def remember(self, cls: type[R], kind: str, key: Mapping[str, Any], make: Callable[[], R]) -> R:
        """The record of this key: recalled, or made and kept."""
        found = self.recall(cls, kind, key)
        if found is None:
            found = make()
            self.keep(found, kind, key)
        return found


def context_of(options: Mapping[str, Any]) -> str:
    """A digest of what any result may depend on: versions, this program, the CPU, and `options`."""
    # What the canaries show follows from the rest, and they would import every runtime.
    machine = describe(canaries=False)
    source = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for file in sorted(f for p in ("bench", "quantize") for f in (root / p).rglob("*.py")):
        source.update(file.read_bytes())
    facts = [
        source.hexdigest(),
        machine.cpu,
        machine.flags,
        machine.variables,
        machine.packages,
        machine.python,
        options,
    ]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_plugin(text: str | None) -> str:
    """Digest of the file that `file.py:function` names; empty for a name that is no file."""
    path = Path((text or "").rpartition(":")[0] or ".")
    with suppress(OSError):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def metric_digest(limits: Limits) -> str:
    """What tells metrics of one name apart: what was asked for, and the user's own files."""
    parts = (limits.metric, limits.output, limits.decode)
    return "|".join([*map(str, parts), *(digest_of_plugin(p) for p in parts)])


@contextmanager
def renamed(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to; it becomes `file` at the end, and vanishes on an error."""
    beside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield beside
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def not_fatal(what: str) -> Iterator[None]:
    """A step of the journal that may fail, since only time is lost with it."""
    try:
        yield
    except (OSError, OutputError, ResourceError, TypeError, ValueError) as e:
        logger.warning("%s is not kept for a later run: %s", what, e)


def keep_calibration(journal: Journal, key: Mapping[str, Any], found: Calibration) -> None:
    """Keep the statistics of a calibration: numbers as JSON, arrays beside them in one archive."""
    file = journal.file("calibration", key, ".zip")
    if file is None:
        return
    with not_fatal("calibration"), renamed(file) as beside, zipfile.ZipFile(beside, "w") as archive:
        plain: dict[str, dict[str, Any]] = {}
        for i, (name, stats) in enumerate(found.tensors.items()):
            plain[name] = {}
            for field in fields(stats):
                value = getattr(stats, field.name)
                if isinstance(value, np.ndarray):
                    with archive.open(f"{i}-{field.name}.npy", "w") as stream:
                        np.lib.format.write_array(stream, value, allow_pickle=False)
                    value = {"array": f"{i}-{field.name}.npy"}
                plain[name][field.name] = value
        facts = {
            "model_sha256": found.model_sha256,
            "samples_sha256": found.samples_sha256,
            "samples": found.samples,
            "tensors": plain,
        }
        archive.writestr("calibration.json", json.dumps(facts))


def recall_calibration(journal: Journal, key: Mapping[str, Any]) -> Calibration | None:
    """The statistics that were kept under this key, if they are sound."""
    file = journal.file("calibration", key, ".zip")
    if file is None or not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            facts = json.loads(archive.read("calibration.json"))
            tensors = {
                name: TensorStatistics(**{k: _value(archive, v) for k, v in plain.items()})
                for name, plain in facts.pop("tensors").items()
            }
            return Calibration(tensors=tensors, **facts)
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as e:
        logger.info("calibration is made again: %s", e)
        return None


def _value(archive: zipfile.ZipFile, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    with archive.open(value["array"]) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def remember_calibration(
    journal: Journal, key: Mapping[str, Any], make: Callable[[], Calibration]
) -> Calibration:
    """The statistics of this key: recalled, or made and kept."""
    found = recall_calibration(journal, key)
    if found is None:
        found = make()
        keep_calibration(journal, key, found)
    return found


def keep_evaluation(journal: Journal, found: Evaluation, kind: str, key: Mapping[str, Any]) -> bool:
    """Keep scores and, of a corpus metric, the rows beside them; whether that could be done."""
    kept = found.evidence is None
    file = journal.file(f"{kind}-rows", key, ".zip")
    if found.evidence is not None and file is not None:
        with not_fatal(f"{kind} by {found.metric}"), renamed(file) as beside:
            write_rows(found.evidence.rows, beside)
            kept = True
    if kept:
        journal.keep(found, kind, key)
    return kept


def recall_evaluation(
    journal: Journal, metric: Metric, kind: str, key: Mapping[str, Any]
) -> Evaluation | None:
    """The scores that were kept under this key, if they are sound and whole.

    Args:
        journal: Where to look.
        metric: What they are of; resampling needs its function.
        kind: As they were kept.
        key: The same.
    """
    found = journal.recall(Evaluation, kind, key)
    if found is None or found.corpus_value is None or found.nonfinite:
        # Rows that are not finite are resampled by nobody.
        return found
    file = journal.file(f"{kind}-rows", key, ".zip")
    if file is None or metric.corpus is None:
        return None
    try:
        rows = read_rows(file)
    except (OSError, ValueError) as e:
        logger.info("%s is made again: %s", kind, e)
        return None
    if len(rows) != found.corpus_count:
        return None
    return replace(
        found,
        evidence=Evidence(rows, metric.corpus, metric.name, metric.spoil, additive=metric.additive),
    )


def knows_scores(journal: Journal, key: Mapping[str, Any]) -> bool:
    """Whether FP32's scores were kept under this key; see `remember_scores`."""
    file = journal.file("outputs", key, ".zip")
    return file is not None and file.is_file()


def remember_scores(
    journal: Journal,
    key: Mapping[str, Any],
    metric: Metric,
    outputs: OutputStore,
    make: Callable[[], Evaluation],
) -> Evaluation:
    """FP32's scores, recalled with `outputs`, or made by what fills `outputs`, and both kept."""
    file = journal.file("outputs", key, ".zip")
    known = recall_evaluation(journal, metric, "baseline", key)
    if known is not None and file is not None and file.is_file():
        with suppress(OSError, ValueError):
            outputs.read(file)
            return known
    found = make()
    if file is not None and keep_evaluation(journal, found, "baseline", key):
        with not_fatal("outputs of FP32"), renamed(file) as beside:
            outputs.write(beside)
    return found
