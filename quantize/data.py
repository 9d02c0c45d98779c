"""Samples: what a model is calibrated and judged on, from any of the formats in `READERS`.

Every sample is read and checked once before anything is done with it, so that a damaged one is
found now and not after an hour. Each has a digest of its content: it keeps calibration and
evaluation apart, and pairs the scores of two models.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from bench.errors import InputError, UsageError
from bench.machine import available_threads
from bench.models import Feeds, TensorSpec
from quantize import archives, feeds, images, spool
from quantize.feeds import Request, Rows
from quantize.images import Preprocessing
from quantize.labels import label_digest
from quantize.plugins import is_function_text, nearest

# Samples that tell which axes vary, and how long one takes to read.
_PEEK = 8
_RUN = 64  # Samples that one thread reads and hashes at a time, at most.
# What takes less is read before threads have handed the interpreter to each other.
_SLOW_NS = 100_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Attributes:
        feeds: Exactly what the model takes, batch axis included; read-only arrays by input name.
        label: What the model should have said, in any form that the metric understands, or None.
        digest: SHA-256 over the feeds' names, element types, shapes and bytes.
    """

    feeds: Feeds
    label: object | None
    digest: str


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples on disk or in memory, with random access; each access reads the sample again.

    Attributes:
        source: What was read.
        inputs: What the samples were checked against.
        labelled: Whether every sample has a label.
        digests: Digest of each sample's content.
    """

    source: str
    inputs: tuple[TensorSpec, ...]
    labelled: bool
    digests: tuple[str, ...]
    _load: Callable[[int], Feeds]
    _label: Callable[[int], object] | None
    _indices: tuple[int, ...]
    _where: Callable[[int], str]
    # Of all of it, once it was asked for.
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self))[index]
        return Sample(
            feeds=self._load(self._indices[position]),
            label=self.label(position),
            digest=self.digests[position],
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def label(self, index: int) -> object | None:
        """Label of one sample, without reading its feeds."""
        return self._label(self._indices[index]) if self._label is not None else None

    @property
    def first_label(self) -> object | None:
        """Label of the first sample alone, also where a model takes several at once."""
        label, shape = self.label(0), self.inputs[0].shape if self.inputs else None
        batch = shape[0] if shape else None
        if isinstance(label, np.ndarray) and isinstance(batch, int) and label.shape[:1] == (batch,):
            return label[0] if batch > 1 else label
        return label

    def number(self, index: int) -> int:
        """Place of one sample among all of the source, from 0."""
        return self._indices[index]

    def place(self, index: int) -> str:
        """File or place that one sample came from."""
        return self._where(self._indices[index])

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all samples and labels, in order; made once."""
        if not self._digest:
            total = hashlib.sha256()
            for i, digest in enumerate(self.digests):
                total.update(f"{digest}{label_digest(self.label(i))}".encode())
            self._digest.append(total.hexdigest())
        return self._digest[0]

    def subset(self, indices: Sequence[int]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = [range(len(self))[i] for i in indices]
        return replace(
            self,
            digests=tuple(self.digests[i] for i in chosen),
            _indices=tuple(self._indices[i] for i in chosen),
            _digest=[],
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """One data format.

    Attributes:
        accepts: Whether a source has this format.
        read: Its samples.
        peek: Its first samples, with nothing known about the model.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str, Request], Rows]
    peek: Callable[[str, int], list[Feeds]]


def read_samples(
    source: str,
    inputs: Sequence[TensorSpec],
    *,
    scratch: Path,
    preprocessing: Preprocessing | None = None,
    states: Mapping[str, str] | None = None,
    limit: int | None = None,
    texts: bool = False,
) -> Samples:
    """Read and check every sample of a source.

    Args:
        source: A file, a folder, or `file.py:function`; see `READERS`.
        inputs: What the model takes.
        scratch: Folder for temporary files; needed as long as the samples are.
        preprocessing: How images become arrays; None for the defaults of image classification.
        states: Inputs that carry state, with the outputs they come from; zeros where a sample does
            not give them.
        limit: Read at most so many samples; of class folders, spread evenly over the classes.
        texts: Labels in `labels.csv` are text, even where all look like numbers.

    Raises:
        InputError: The source is missing, damaged or empty, or a sample does not fit the model.
        UsageError: The source has no format that is known.
        ResourceError: It does not fit in memory or on the disk.
    """
    request = Request(
        inputs=tuple(inputs),
        scratch=scratch,
        preprocessing=preprocessing,
        states=frozenset(states or ()),
        limit=limit,
        texts=texts,
    )
    return _examine(source, _reader(source).read(source, request), request)


def infer_inputs(source: str) -> tuple[TensorSpec, ...]:
    """What a model takes, judged by the first samples of its data.

    The batch axis is free, and so are axes in which the samples differ.

    Raises:
        InputError: There are no samples, or they do not name their inputs.
        UsageError: The format does not say what the model takes.
    """
    found = _reader(source).peek(source, _PEEK)
    if not found:
        raise InputError(f"{source}: holds no samples.")
    return feeds.describe(found)


def _examine(source: str, rows: Rows, request: Request) -> Samples:
    """Read every row once; what does not fit is found here."""
    count = rows.count if request.limit is None else min(rows.count, request.limit)
    if count == 0:
        raise InputError(f"{source}: holds no samples.")

    def load(i: int, *, values: bool = False) -> Feeds:
        return _checked(rows, i, request, values=values)

    return Samples(
        source=source,
        inputs=request.inputs,
        labelled=rows.label is not None,
        digests=_digests(partial(load, values=True), count),
        _load=load,
        _label=_kept(rows.label) if rows.label is not None else None,
        _indices=tuple(range(count)),
        _where=rows.where,
    )


def _kept(label: Callable[[int], object]) -> Callable[[int], object]:
    """Labels that are one number or text, read once: they are asked for often, and a file is slow.

    Others may be as large as the samples, and are read again.
    """
    known: dict[int, object] = {}

    def read(i: int) -> object:
        if i in known:
            return known[i]
        found = label(i)
        if isinstance(found, int | float | str):
            known[i] = found
        return found

    return read


def _checked(rows: Rows, index: int, request: Request, *, values: bool) -> Feeds:
    """One sample. Its values are looked at once, with its digest; its form at each read."""
    found = feeds.with_states(rows.load(index), request.inputs, request.states)
    feeds.check_feeds(found, request.inputs, rows.where(index), values=values)
    return {s.name: feeds.frozen(found[s.name]) for s in request.inputs}


def _digests(load: Callable[[int], Feeds], count: int) -> tuple[str, ...]:
    """Read every sample once; where one takes long, in threads, which decode and hash at once."""
    first, least_ns = [], _SLOW_NS
    for i in range(min(_PEEK, count)):
        start_ns = perf_counter_ns()
        first.append(feeds.digest(load(i)))
        least_ns = min(least_ns, perf_counter_ns() - start_ns)  # The first may import a decoder.
    workers = 1 if least_ns < _SLOW_NS else min(8, available_threads())
    size = max(1, min(_RUN, count // (8 * workers)))
    runs = (range(i, min(i + size, count)) for i in range(len(first), count, size))
    with ThreadPoolExecutor(workers) as pool:
        rest = pool.map(lambda run: [feeds.digest(load(i)) for i in run], runs)
        return (*first, *(d for found in rest for d in found))


def _reader(source: str) -> Reader:
    try:
        for reader in READERS.values():
            if reader.accepts(source):
                return reader
    except OSError as e:
        raise InputError(f"{source}: cannot be looked at: {e.strerror}.") from e
    path = Path(source)
    if path.is_dir():
        entries = [p for p in path.iterdir() if not p.name.startswith(".")]
        raise InputError(
            f"{source}: 0 of {len(entries)} entries matched *.npy, *.npz or an image "
            f"({', '.join(images.SUFFIXES)}), here or in class folders."
        )
    if path.exists():
        raise UsageError(
            f"{source}: unknown data format {path.suffix!r}; known: {', '.join(READERS)}."
        )
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(f"{source}: no such file or folder.{nearest(path.name, near)}")


def _peek_images(source: str, _count: int) -> list[Feeds]:
    raise UsageError(
        f"{source}: a folder of images does not say what the model takes. Name its input with "
        "--input, as in --input image:f32[N,3,224,224]."
    )


READERS: dict[str, Reader] = {
    "array file (.npz, .npy)": Reader(
        accepts=lambda s: Path(s).suffix in (".npz", ".npy") and Path(s).is_file(),
        read=archives.read_npz,
        peek=archives.peek_npz,
    ),
    "folder of arrays": Reader(
        accepts=lambda s: Path(s).is_dir() and bool(archives.array_files(Path(s))),
        read=archives.read_folder,
        peek=archives.peek_folder,
    ),
    "folder of images": Reader(
        accepts=lambda s: Path(s).is_dir() and bool(images.image_files(Path(s))),
        read=images.read_images,
        peek=_peek_images,
    ),
    "file.py:function": Reader(
        accepts=lambda s: is_function_text(s) and not Path(s).exists(),
        read=spool.read_function,
        peek=spool.peek_function,
    ),
}
