"""What a metric is: how outputs become scores, and which way is up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.scores import Labels

# (outputs, labels, reference outputs, name of the output to score or None) -> one score per sample,
# or one row of evidence per sample.
Score: TypeAlias = Callable[[Feeds, Labels, Feeds | None, str | None], list[Any]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A named way to score model outputs.

    Attributes:
        name: As `--metric` takes it.
        function: What computes it; call `score`.
        higher_is_better: False for errors such as `mse`.
        binary: Whether each score is 0 or 1 (wrong or right); None: look at the scores.
        bounded: Whether scores lie in 0..1, so that a drop in points means something; None: look.
        needs: What `score` cannot do without.
        guessing: (outputs, output) -> the score that guessing would get, None where that has no
            meaning; call `chance`.
        output: The model output to score; None: the first that fits, or `whole`.
        whole: Whether it looks at all outputs unless `output` names one.
        corpus: `function` gives rows, and this is the metric of any selection of them.
        spoil: With `corpus`: makes rows those of samples that went wrong altogether.
        additive: With `corpus`: whether it does nothing with rows but add them up first.
        finish: `function` gives rows, and this one score per sample, of all of them.
        decibels: Whether scores are ratios of signal to noise, whose limit is a floor.
        answering: (outputs, output, samples) -> what the model says of each sample, in short; call
            `answer`.
        texts: Whether labels are text to it, even where they look like numbers.
    """

    name: str
    function: Score
    higher_is_better: bool = True
    binary: bool | None = None
    bounded: bool | None = True
    needs: Literal["labels", "reference", "nothing"] = "labels"
    guessing: Callable[[Feeds, str | None], float | None] | None = None
    output: str | None = None
    whole: bool = False
    corpus: Callable[[Rows], float] | None = None
    spoil: Callable[[Rows], Rows] | None = None
    additive: bool = False
    finish: Callable[[Rows], Sequence[float]] | None = None
    decibels: bool = False
    answering: Callable[[Feeds, str | None, int], list[str]] | None = None
    texts: bool = False

    @property
    def is_partial(self) -> bool:
        """Whether it looks at one output, however many the model has."""
        return self.output is not None or not self.whole

    @property
    def gathers(self) -> bool:
        """Whether scores are known only when all samples have run."""
        return self.corpus is not None or self.finish is not None

    def score(self, outputs: Feeds, labels: Labels, reference: Feeds | None = None) -> list[Any]:
        """One score per sample of one model run, or one row if the metric `gathers`.

        Args:
            outputs: What the model returned.
            labels: Of the same samples; see `run_labels`.
            reference: What the FP32 model returned for them.

        Raises:
            InputError: Outputs, labels or the user's function do not fit.
            UsageError: There is no such output, or no reference where one is needed.
        """
        return self.function(outputs, labels, reference, self.output)

    def answer(self, outputs: Feeds, count: int) -> list[str]:
        """What the model says of each of `count` samples of one run; empty where that is unknown.

        Args:
            outputs: Of a run that `score` has accepted.
            count: How many scores it had.
        """
        return self.answering(outputs, self.output, count) if self.answering is not None else []

    def chance(self, outputs: Feeds) -> float | None:
        """The score that guessing would get; None where guessing has no meaning.

        Args:
            outputs: Of any run that `score` has accepted.
        """
        return self.guessing(outputs, self.output) if self.guessing is not None else None


def read_only(array: Array) -> Array:
    """A view that nobody can write to."""
    view = array.view()
    view.flags.writeable = False
    return view
