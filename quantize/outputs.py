"""What models returned: the FP32 outputs kept to compare with, and how far others lie from them."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from bench.errors import InputError, ResourceError
from bench.models import Array, Feeds

# What an output without noise counts as.
MOST_DB = 200.0

_Read: TypeAlias = Callable[[], Array]


class OutputStore:
    """Outputs of one model, run by run: in memory up to a budget, the rest on disk.

    A context manager: what went to disk is removed at the end. Text outputs are not kept.

    Args:
        budget_bytes: Arrays to hold in memory; later ones go to disk.
        folder: Where to spool; None: a temporary folder of its own.
    """

    def __init__(self, *, budget_bytes: int = 256 << 20, folder: Path | None = None) -> None:
        self._free_bytes = budget_bytes
        self._parent = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._archive: zipfile.ZipFile | None = None
        self._runs: list[tuple[str, dict[str, _Read]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int) -> Feeds:
        """Outputs of one run by name; read-only where they lie in memory."""
        return {name: read() for name, read in self._runs[index][1].items()}

    def append(self, digest: str, outputs: Feeds) -> None:
        """Keep the outputs of the next run.

        Args:
            digest: Of the sample that was run.
            outputs: What the model returned.

        Raises:
            ResourceError: The disk is full.
        """
        run = len(self._runs)
        kept = {
            name: self._keep(array, f"{run}-{i}.npy")
            for i, (name, array) in enumerate(outputs.items())
            if array.dtype.kind not in "OUS"
        }
        self._runs.append((digest, kept))

    def of(self, index: int, digest: str) -> Feeds:
        """Outputs of the run at `index`, which has to be of the sample with this digest.

        Raises:
            InputError: It was of another sample, or there is none.
        """
        if index >= len(self._runs):
            raise InputError(f"only {len(self._runs)} samples have FP32 outputs to compare with.")
        found = self._runs[index][0]
        if found != digest:
            raise InputError(
                f"the data gave sample {found[:12]}… here when FP32 ran, and now {digest[:12]}…. "
                "It has to give the same samples in the same order each time."
            )
        return self[index]

    def write(self, path: Path) -> None:
        """Write everything into one file, one run at a time."""
        index = []
        with zipfile.ZipFile(path, "w") as archive:
            for run, (digest, kept) in enumerate(self._runs):
                for i, read in enumerate(kept.values()):
                    with archive.open(f"{run}-{i}.npy", "w", force_zip64=True) as stream:
                        np.lib.format.write_array(stream, read(), allow_pickle=False)
                index.append([digest, list(kept)])
            archive.writestr("index.json", json.dumps(index))

    def read(self, path: Path) -> None:
        """Take what `write` wrote instead of what is here; arrays are read when they are asked for.

        Raises:
            OSError: It cannot be read.
            ValueError: It is damaged.
        """
        try:
            archive = zipfile.ZipFile(path)
            index = json.loads(archive.read("index.json"))
        except (zipfile.BadZipFile, KeyError) as e:
            raise ValueError(f"{path}: damaged: {e}") from e
        self.close()
        self._archive = archive
        for run, (digest, names) in enumerate(index):
            kept: dict[str, _Read] = {
                n: partial(_member, archive, f"{run}-{i}.npy") for i, n in enumerate(names)
            }
            self._runs.append((digest, kept))

    def close(self) -> None:
        """Forget everything and remove what went to disk."""
        self._runs.clear()
        if self._archive is not None:
            self._archive.close()
            self._archive = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _keep(self, array: Array, name: str) -> _Read:
        if array.nbytes <= self._free_bytes:
            self._free_bytes -= array.nbytes
            view = array.view()
            view.flags.writeable = False
            return lambda: view
        try:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="outputs-", dir=self._parent)
            path = Path(self._scratch.name) / name
            np.save(path, array, allow_pickle=False)
        except OSError as e:
            raise ResourceError(
                f"cannot keep {array.nbytes:,} bytes of FP32 outputs on disk: {e}. Free some space "
                "or evaluate fewer samples."
            ) from e
        return lambda: np.asarray(np.load(path, allow_pickle=False))


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def noise_shares(reference: Sequence[Feeds], found: Sequence[Feeds]) -> dict[str, float]:
    """Noise power over signal power of every output that FP32 computes in float.

    A non-finite output counts as noise of 1e6 times the signal.
    """
    shares: dict[str, float] = {}
    for name, first in reference[0].items():
        if first.dtype.kind != "f":
            continue
        signal = noise = 0.0
        for ours, theirs in zip(reference, found, strict=True):
            a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
            sound = np.isfinite(a)
            if a.shape != b.shape or not np.isfinite(b[sound]).all():
                return {name: 1e6}
            signal += float(np.square(a[sound]).sum())
            noise += float(np.square(a[sound] - b[sound]).sum())
        if signal > 0:
            shares[name] = min(noise / signal, 1e6)
        else:
            shares[name] = 1.0 if noise > 0 else 0.0
    return shares


def to_db(shares: Mapping[str, float]) -> float:
    """Signal to noise in dB, mean over outputs; at most `MOST_DB`."""
    return float(np.mean([*by_output(shares).values()])) if shares else MOST_DB


def least_db(shares: Mapping[str, float]) -> float:
    """The same of the output where it is the least."""
    return min(by_output(shares).values(), default=MOST_DB)


def by_output(shares: Mapping[str, float]) -> dict[str, float]:
    """The same of each output."""
    return {n: min(float(-10 * np.log10(max(s, 1e-20))), MOST_DB) for n, s in shares.items()}


def first_nonfinite(outputs: Feeds, reference: Feeds | None, *, own: bool = False) -> str | None:
    """Name of the first output with a value that no metric may repair, or None.

    A NaN always counts. An infinity counts unless the reference has the same one in the same place:
    masked logits are -inf by design.

    Args:
        outputs: Of one run.
        reference: Of the FP32 model, for the same sample.
        own: These are the reference themselves: -inf is by design, +inf and NaN are not.
    """
    for name, found in outputs.items():
        if found.dtype.kind not in "fc" or np.isfinite(found).all():
            continue
        allowed = np.zeros(found.shape, dtype=bool)
        wanted = (reference or {}).get(name)
        if own:
            allowed = np.isneginf(found)
        elif wanted is not None and wanted.shape == found.shape:
            allowed = np.isinf(found) & (found == wanted)
        if not (np.isfinite(found) | allowed).all():
            return name
    return None
