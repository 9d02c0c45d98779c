"""The calibration samples for engines that collect statistics of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.models import Feeds, Model
from bench.runtimes import RUNTIMES, Settings
from quantize.data import Samples


@dataclass(frozen=True, slots=True)
class Replay:
    """The calibration samples as an engine reads them: one at a time, as often as it likes.

    A carried state is computed by FP32, as it is while the native engine calibrates.
    """

    model: Model
    samples: Samples
    states: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Feeds]:
        if not self.states:
            yield from (sample.feeds for sample in self.samples)
            return
        session = RUNTIMES["onnxruntime"].open(self.model.path, Settings(threads=1))
        carried: Feeds = {}
        try:
            for sample in self.samples:
                feeds = {**sample.feeds, **carried}
                yield feeds
                outputs = session.run(feeds)
                carried = {taker: outputs[giver] for giver, taker in self.states.items()}
        finally:
            session.close()
