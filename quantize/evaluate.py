"""Evaluations: the score of one model on every sample, in order, so that two models can be paired.

Samples are run exactly as they are given and never regrouped into batches: dynamic quantization
computes its scales over the batch, so a regrouped run would judge another model than the one
that is served.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, UsageError, VnnifyError
from bench.models import Feeds, Model
from bench.runtimes.seam import Runtime, Session, Settings
from quantize.data import Samples
from quantize.evidence import Evidence, Gathering, stacked
from quantize.inference import Run, run_all
from quantize.metric import Metric
from quantize.metrics import run_labels
from quantize.outputs import OutputStore, first_nonfinite
from quantize.scores import Labels

if TYPE_CHECKING:
    from concurrent.futures import Future

    from quantize.served import Few

# The score of a non-finite sample where the metric has no worst one; JSON knows no infinity.
_WORST = float(np.finfo(np.float32).max)

Watch = Callable[[Sequence[float], int, int], bool]
"""(scores so far, samples run, samples in all) -> whether to stop; called after each sample. There
are no scores yet where the metric gathers rows."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model is run to be judged.

    Attributes:
        runtime: What opens it.
        settings: Threads (used across samples where these do not depend on each other), device and
            arithmetic.
        states: Output -> input: what one run returned is fed to the next. The first run takes the
            sample's own value. Scores are then not independent of each other.
        few: Samples that are run besides, once all others have been.
        opened: The model, where it is being opened already; see `opened_beside`.
    """

    runtime: Runtime
    settings: Settings
    states: Mapping[str, str] = field(default_factory=dict)
    few: "Few | None" = None
    opened: "Future[Session] | None" = None

    @property
    def opening(self) -> Settings:
        """What the model is opened with."""
        # Samples in parallel scale better than threads inside one small operator. OpenVINO has to
        # be told: in a stream one inference waits for the other.
        if self.states:
            return self.settings
        return replace(self.settings, threads=1, streams=self.settings.threads)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one model.

    Attributes:
        model_sha256: Digest of the model.
        runtime: Name of what ran it.
        runtime_version: Its version.
        arithmetic: "exact": INT8 products as VNNI computes them; "native": as this host does.
        metric: Name of the metric.
        output: The output it was asked to score, None where the metric chose.
        higher_is_better: Direction of the scores.
        binary: Whether every score is 0 or 1, wrong or right.
        bounded: Whether scores lie in 0..1, so that points (pt) mean something.
        chance: Score that guessing would get, None where that has no meaning.
        scores: One per sample, all finite, in the order of the samples; none of a corpus metric.
        nonfinite: Runs with a NaN or a wrong infinity in some output. They have the worst score.
        first_nonfinite: The first of them, and the output it was in.
        samples_sha256: Digest of all samples and labels.
        outputs: Names of the model's outputs.
        seconds: How long it took.
        corpus_value: Of a corpus metric: its value over all samples with finite outputs.
        corpus_count: Of a corpus metric: samples run.
        decibels: Whether the score is a ratio of signal to noise.
        answers: What the model said of each sample, as short texts; empty where the metric tells
            none.
        evidence: Of a corpus metric: what resampling needs. Not stored in files; None too where
            outputs are not finite, since nothing is resampled then.
    """

    model_sha256: str
    runtime: str
    runtime_version: str
    arithmetic: Literal["exact", "native"]
    metric: str
    output: str | None
    higher_is_better: bool
    binary: bool
    bounded: bool
    chance: float | None
    scores: tuple[float, ...]
    nonfinite: int
    first_nonfinite: str | None
    samples_sha256: str
    outputs: tuple[str, ...]
    seconds: float
    corpus_value: float | None = None
    corpus_count: int = 0
    decibels: bool = False
    answers: tuple[str, ...] = ()
    evidence: Evidence | None = field(default=None, compare=False)

    @property
    def value(self) -> float:
        """Mean score, or that of the whole where the metric is no mean."""
        if self.corpus_value is not None:
            return self.corpus_value
        return math.fsum(self.scores) / len(self.scores)

    @property
    def count(self) -> int:
        """Samples that were scored."""
        return len(self.scores) or self.corpus_count


def evaluate(
    model: Model,
    samples: Samples,
    metric: Metric,
    execution: Execution,
    *,
    reference: OutputStore | None = None,
    keep: OutputStore | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Run a model on every sample and score it.

    Args:
        model: To judge.
        samples: In the order in which scores are to be paired.
        metric: One that compares with FP32 outputs takes the model's own where `reference` is None.
        execution: Runtime, settings and carried states.
        reference: Outputs of the FP32 model for the same samples.
        keep: Filled with this model's outputs, to be the `reference` of others.
        watch: Sees each new score; where it returns True, the remaining samples are left out. Pair
            the result with `first_scores` of the baseline. Stop only for a loss that is certain:
            stopping at the first moment that would pass voids the verdict's error rate.

    Raises:
        InputError: There are no samples, the model cannot run on one, or the metric refuses one;
            the message numbers it.
        UsageError: A state or an output does not exist.
    """
    with scoring(model, samples, metric, execution, reference=reference, keep=keep) as scores:
        scores.run_to(len(samples), watch)
        if execution.few is not None and scores.done == len(samples):
            execution.few.see(scores)
        return scores.evaluation()


@contextlib.contextmanager
def opened_beside(model: Model, execution: Execution) -> Iterator["Future[Session]"]:
    """Open a model to be judged while the block does something else first.

    Args:
        model: To judge.
        execution: How; the same takes what is yielded as `opened`.

    Yields:
        What is being opened. It is closed in any case.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(execution.runtime.open, model.path, execution.opening)
        try:
            yield opened
        finally:
            # Why it could not be opened, who waits for it is told.
            with contextlib.suppress(VnnifyError):
                opened.result().close()


@contextlib.contextmanager
def scoring(
    model: Model,
    samples: Samples,
    metric: Metric,
    execution: Execution,
    *,
    reference: OutputStore | None = None,
    keep: OutputStore | None = None,
) -> Iterator["Scoring"]:
    """An evaluation that goes only as far as it is told; arguments and errors as of `evaluate`."""
    _refuse_unknown_states(model, execution.states)
    if len(samples) == 0:
        raise InputError(f"{samples.source}: holds no samples to evaluate on.")
    started_ns = time.perf_counter_ns()
    tally = _Tally(metric, reference, keep, Gathering(metric.name))
    with _opened(model, execution) as session:
        opened_ns = time.perf_counter_ns() - started_ns
        yield Scoring(model, samples, execution, session, tally, opened_ns)


@dataclass(slots=True)
class Scoring:
    """A model that has been scored on some of the samples; `scoring` makes it.

    Attributes:
        model: What is scored.
        samples: All of them.
        execution: How it runs.
        session: The open model.
        tally: Scores so far.
        took_ns: What opening and running took.
        done: Samples run.
    """

    model: Model
    samples: Samples
    execution: Execution
    session: Session
    tally: "_Tally"
    took_ns: int
    done: int = 0

    def run_to(self, stop: int, watch: Watch | None = None) -> None:
        """Run the samples in front of `stop` that have not run, or until `watch` returns True."""
        started_ns, total = time.perf_counter_ns(), len(self.samples)
        states, workers = self.execution.states, self.execution.settings.threads
        which = range(self.done, stop)
        chunks = run_all(self.session, self.samples, states, workers, which)
        with contextlib.closing(chunks):
            for run in itertools.chain.from_iterable(chunks):
                self.tally.add(run)
                self.done = run.index + 1
                if watch is not None and watch(self.tally.scores, self.done, total):
                    break
        self.took_ns += time.perf_counter_ns() - started_ns

    def evaluation(self) -> Evaluation:
        """Of the samples that have run; of a metric that gathers rows, ask once."""
        seconds = self.took_ns / 1e9
        return _evaluation(self.model, self.samples, self.tally, self.execution, seconds)


def try_metric(metric: Metric, session: Session, samples: Samples) -> None:
    """Score the first sample, so that what does not fit is told before hours of work.

    Raises:
        InputError: The metric refuses it.
    """
    tally = _Tally(metric, None, None, Gathering(metric.name))
    with contextlib.closing(run_all(session, samples, {}, 1, range(1))) as chunks:
        for run in itertools.chain.from_iterable(chunks):
            tally.add(run)


def at(evaluation: Evaluation, picks: NDArray[np.intp]) -> Evaluation:
    """The evaluation of the samples at `picks` alone."""
    if evaluation.evidence is None:
        return replace(evaluation, scores=tuple(evaluation.scores[i] for i in picks), answers=())
    some = evaluation.evidence.at(picks)
    return replace(evaluation, evidence=some, corpus_value=some.value(), corpus_count=len(some))


def first_scores(evaluation: Evaluation, count: int) -> Evaluation:
    """The evaluation as if it had stopped after `count` scores, to pair with one that did."""
    return at(evaluation, np.arange(count))


@dataclass(slots=True)
class _Tally:
    metric: Metric
    reference: OutputStore | None
    keep: OutputStore | None
    gathering: Gathering
    scores: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    chance: float | None = None
    nonfinite: int = 0
    first_nonfinite: str | None = None

    def add(self, run: Run) -> None:
        try:
            self._add(run)
        except InputError as e:
            raise InputError(f"sample {run.index}: {e}") from e

    def _add(self, run: Run) -> None:
        reference, outputs = None, run.outputs
        if self.reference is not None:
            reference = self.reference.of(run.index, run.digest)
        if self.keep is not None:
            self.keep.append(run.digest, outputs)
        labels = run_labels(run.label, run.batch)
        own = self.keep is not None and reference is None
        wrong = first_nonfinite(outputs, reference, own=own)
        if wrong is not None:
            self.nonfinite += 1
            self.first_nonfinite = self.first_nonfinite or f"sample {run.index}, output {wrong!r}"
            # The metric is not asked: argmax of NaN is a class, and a mean may skip it.
            self._add_broken(self._count(labels, reference))
            return
        if self.metric.needs == "reference" and reference is None:
            reference = outputs
        scores = self.metric.score(outputs, labels, reference)
        if self.chance is None:
            self.chance = self.metric.chance(outputs)
        if self.metric.gathers:
            self.gathering.add(scores)
            return
        if not all(math.isfinite(s) for s in scores):
            raise InputError(
                f"metric {self.metric.name!r} gives {scores} for finite outputs; the label is "
                f"{run.label!r:.80}. Every score has to be a finite number."
            )
        self.scores += scores
        self.answers += self.metric.answer(outputs, len(scores))

    def finish(self) -> Evidence | None:
        """Turn gathered rows into scores, or into evidence where the metric is of the whole."""
        metric, rows = self.metric, stacked(self.gathering.rows)
        if metric.corpus is not None:
            return Evidence(
                rows, metric.corpus, metric.name, metric.spoil, additive=metric.additive
            )
        if metric.finish is not None:
            self.scores = list(metric.finish(rows)) if len(rows) else []
            for place in self.broken:
                self.scores.insert(place, self.worst())
        return None

    def _add_broken(self, count: int) -> None:
        if self.metric.gathers:
            place = len(self.gathering.rows) + len(self.broken)
            self.broken += range(place, place + count)
        else:
            self.scores += [self.worst()] * count
            self.answers += ["not finite"] * count

    def _count(self, labels: Labels, reference: Feeds | None) -> int:
        if self.metric.needs != "reference":
            return len(labels)
        return len(self.metric.score(reference, labels, reference)) if reference else 1

    def worst(self) -> float:
        """The score of a run that is not finite."""
        if not self.metric.higher_is_better:
            return _WORST
        return -_WORST if self.metric.bounded is False else 0.0


def _evaluation(
    model: Model, samples: Samples, tally: _Tally, execution: Execution, seconds: float
) -> Evaluation:
    metric = tally.metric
    evidence, corpus = tally.finish(), metric.corpus is not None
    whole = None
    if evidence is not None:
        whole = evidence.value() if len(evidence) else tally.worst()
    in_bounds = all(0 <= s <= 1 for s in tally.scores)
    right_or_wrong = all(s in (0.0, 1.0) for s in tally.scores)
    return Evaluation(
        model_sha256=model.sha256,
        runtime=execution.runtime.name,
        runtime_version=execution.runtime.version(),
        arithmetic="exact" if execution.settings.exact else "native",
        metric=metric.name,
        output=metric.output,
        higher_is_better=metric.higher_is_better,
        binary=metric.binary is not False and right_or_wrong and not corpus,
        bounded=in_bounds and not corpus if metric.bounded is None else metric.bounded,
        chance=tally.chance,
        scores=tuple(tally.scores),
        nonfinite=tally.nonfinite,
        first_nonfinite=tally.first_nonfinite,
        samples_sha256=samples.digest,
        outputs=tuple(o.name for o in model.outputs),
        seconds=seconds,
        corpus_value=whole,
        corpus_count=len(tally.gathering.rows) + len(tally.broken) if corpus else 0,
        decibels=metric.decibels,
        answers=tuple(tally.answers) if metric.answering is not None else (),
        evidence=None if tally.nonfinite else evidence,
    )


@contextlib.contextmanager
def _opened(model: Model, execution: Execution) -> Iterator[Session]:
    if execution.opened is not None:
        session = execution.opened.result()
    else:
        session = execution.runtime.open(model.path, execution.opening)
    try:
        yield session
    finally:
        session.close()


def _refuse_unknown_states(model: Model, states: Mapping[str, str]) -> None:
    outputs, inputs = {o.name for o in model.outputs}, {i.name for i in model.inputs}
    for giver, taker in states.items():
        for name, known, kind in ((giver, outputs, "output"), (taker, inputs, "input")):
            if name not in known:
                raise UsageError(
                    f"state {giver!r} -> {taker!r}: {model.path} has no {kind} {name!r}; it has "
                    f"{', '.join(sorted(known))}."
                )
