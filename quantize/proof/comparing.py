"""Proofs: what an emulated CPU computed, compared with exact judging, and how a report tells it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.models import Feeds
from bench.render import Check, Column, Paragraph, Section, Table
from quantize.proof.guest import AVX2_CPU

# Of the range of an output, where float kernels have a say: their sums differ in the last bits, and
# such a bit may move a value that is quantized afterwards by one of 255 steps.
TOLERANCE = 1 / 255


@dataclass(frozen=True, slots=True)
class Compared:
    """One model's outputs in the emulated machine against exact judging here.

    Attributes:
        case: Its name.
        samples: How many ran.
        values: Output values that were compared.
        differ: Of them, those with other bits.
        worst: Largest difference, as a share of the range of its output.
        integer: Whether integer arithmetic alone decides the outputs, so that every bit must agree.
        error: Why it did not run; empty if it did.
    """

    case: str
    samples: int
    values: int
    differ: int
    worst: float
    integer: bool
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether exact judging is right about this model."""
        if self.error or not self.values:
            return False
        return self.differ == 0 if self.integer else self.worst <= TOLERANCE

    @property
    def text(self) -> str:
        """What was found, in a few words."""
        if self.error:
            return f"did not run: {self.error}"
        found = f"{self.differ:,} of {self.values:,} values differ"
        return found + (f", by at most {share(self.worst)} of the range" if self.differ else "")


@dataclass(frozen=True, slots=True)
class Proof:
    """What one emulated CPU says of all models.

    Attributes:
        cpu: Bochs's name of it.
        flags: Those of its instruction sets that matter.
        onnxruntime: Version that ran.
        mode: "native": the runtime's own choice; "exact": switched to exact products.
        canary: The arithmetic that was seen there.
        compared: One per case.
        image_cached: Whether the guest's image was there already.
        image_bytes: Its size.
        image_seconds: To make or find it.
        boot_seconds: Of the guest.
        run_seconds: Of all models and modes.
    """

    cpu: str
    flags: tuple[str, ...]
    onnxruntime: str
    mode: str
    canary: str
    compared: tuple[Compared, ...]
    image_cached: bool
    image_bytes: int = 0
    image_seconds: float = 0.0
    boot_seconds: float = 0.0
    run_seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the CPU computes as it should and every model gives what exact judging says."""
        return self.canary == self._usual and all(c.holds for c in self.compared)

    @property
    def kind(self) -> str:
        """The instruction set that it stands for."""
        return "AVX2" if self.cpu == AVX2_CPU else "AVX512-VNNI"

    @property
    def _usual(self) -> str:
        """What the canary says on a CPU of this kind."""
        saturates = self.cpu == AVX2_CPU and self.mode == "native"
        return "saturating" if saturates else "exact"

    @property
    def refutes(self) -> bool:
        """Whether a model ran and gave something else."""
        return any(not c.holds and not c.error for c in self.compared)

    @property
    def text(self) -> str:
        """What was found, in one line."""
        state = "proved" if self.holds else "not proved"
        found = "; ".join(f"{c.samples} samples, {c.text}" for c in self.compared)
        odd = "" if self.canary == self._usual else f" (its canary: {self.canary})"
        return f"{state} on emulated {self.kind}{odd}, {found}"


def share(part: float) -> str:
    """Per cent, or a power of ten where that would read as nothing."""
    return f"{part:.2%}" if part >= 5e-5 else f"{part:.0e}"


def compare(
    case: str, expected: Sequence[Feeds], found: Sequence[Feeds], *, integer: bool
) -> Compared:
    """Count the values whose bits differ, and measure the largest difference.

    Args:
        case: Its name.
        expected: Outputs per sample.
        found: The same samples on the other machine.
        integer: See `Compared.integer`.
    """
    if len(expected) != len(found):
        return Compared(
            case, 0, 0, 0, 0.0, integer, f"{len(found)} of {len(expected)} samples came back"
        )
    values = differ = 0
    worst = 0.0
    for name in expected[0] if expected else ():
        span = _span([e[name] for e in expected])
        for want, got in zip(expected, found, strict=True):
            a, b = np.asarray(want[name]), np.asarray(got.get(name))
            if a.dtype == object:
                a = a.astype(str)
            if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
                error = f"output {name!r} is {b.dtype}{b.shape}, expected {a.dtype}{a.shape}"
                return Compared(case, 0, 0, 0, 0.0, integer, error)
            unequal = ~_same_bits(a, b)
            values, differ = values + a.size, differ + int(unequal.sum())
            worst = max(worst, _distance(a[unequal], b[unequal]) / span)
    return Compared(case, len(found), values, differ, worst, integer)


def proof_section(proofs: Sequence[Proof]) -> Section:
    """A table of all proofs, one row for each CPU and model."""
    columns = (
        *(Column(name) for name in ("Emulated CPU", "Arithmetic seen", "Agreement", "Flags")),
        *(Column(name, "right") for name in ("Samples", "Values", "Differ", "Boot s", "Run s")),
    )
    rows = tuple(
        (
            f"{p.kind} ({p.cpu})",
            p.canary,
            "every bit" if c.integer else f"within {TOLERANCE:.2%} of the range",
            " ".join(p.flags),
            str(c.samples),
            f"{c.values:,}",
            f"{c.differ:,}",
            f"{p.boot_seconds:.0f}",
            f"{p.run_seconds:.0f}",
        )
        for p in proofs
        for c in p.compared
    )
    note = (
        "Every output of the INT8 model on an emulated CPU, with the installed ONNX Runtime and "
        "its default kernels, against exact judging on this machine. Times of an emulated CPU say "
        "nothing of its speed."
    )
    return Section("Proof", (Table("Emulated and judged", columns, rows), Paragraph(note)))


def proof_checks(proofs: Sequence[Proof]) -> tuple[Check, ...]:
    """One check for each proof."""

    def outcome(proof: Proof) -> Literal["pass", "fail", "inconclusive"]:
        if proof.holds:
            return "pass"
        return "fail" if proof.refutes else "inconclusive"

    return tuple(Check(f"proof on {p.kind}", outcome(p), p.text) for p in proofs)


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """NaN equals NaN; 0 and -0 differ."""
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    same: NDArray[np.bool_] = (a == b) & (np.signbit(a) == np.signbit(b))
    both: NDArray[np.bool_] = np.isnan(a) & np.isnan(b)
    return same | both


def _span(arrays: Sequence[NDArray[Any]]) -> float:
    """Largest minus smallest finite value over all samples; 1 where that says nothing."""
    flat = np.concatenate([np.asarray(a).ravel() for a in arrays]) if arrays else np.zeros(0)
    if flat.dtype.kind not in "fiu":
        return 1.0
    finite = flat[np.isfinite(flat)].astype(np.float64)
    return float(np.ptp(finite)) or 1.0 if finite.size else 1.0


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    if not a.size:
        return 0.0
    if a.dtype.kind not in "fiu":
        return 1.0
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    # Finite here and not there is as wrong as can be, and infinity would not go into JSON.
    return float(np.where(np.isfinite(apart), apart, np.finfo(np.float32).max).max())
