"""What names a trained model, whatever framework made it."""

from dataclasses import dataclass
from pathlib import Path

from bench.models import TensorSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A trained model as the user names it.

    Attributes:
        text: A file, or `file.py:factory`, or `package.module:factory`.
        weights: State dict for the module that a factory makes.
        inputs: What the model takes, where neither the file nor the data says it.
        trust: A file that may run code when it is opened is allowed.
        dynamic_batch: Leave the batch axis free where the model allows it.
    """

    text: str
    weights: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    trust: bool = False
    dynamic_batch: bool = True
