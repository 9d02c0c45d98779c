# SPDX-License-Identifier: Apache-2.0
"""Make the files of the Fashion-MNIST demonstration: weights, calibration and evaluation data.

Reads the IDX files of the Debian package `dataset-fashion-mnist`. Seeds are fixed: the choice of
images is the same on every machine; the weights are the same only on the same processor type and
library versions.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from model import model
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
SEED = 20261121
CLASSES = 10
CALIBRATION_IMAGES = 1024
EVALUATION_IMAGES = 5000
BATCH = 64
THREADS = 1
"""One thread: the weights depend on the number, and more of them stall on a busy machine."""
MAX_SHIFT = 1
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
EPOCH_SIZES = (20, 20, 20, 28, 28)
"""Side length of the training images in each epoch: small ones first, to save time."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Images uint8 [N,28,28] and their labels int64 [N]."""

    images: Bytes
    labels: Ints


class DataError(Exception):
    """The data set is missing or not what it should be."""


def read_idx(path: Path, dims: int) -> Bytes:
    """Read one gzip-compressed IDX file of unsigned bytes.

    Args:
        path: File to read.
        dims: Number of dimensions the file must have.

    Returns:
        The array, uint8, with `dims` dimensions.

    Raises:
        DataError: The file is missing or is not such a file.
    """
    if not path.is_file():
        raise DataError(
            f"{path} not found: install the data set with 'apt install {PACKAGE}' "
            "or name its folder with --data DIR"
        )
    raw = gzip.decompress(path.read_bytes())
    if raw[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes with {dims} dimensions")
    start = 4 + 4 * dims
    shape = np.frombuffer(raw[4:start], dtype=">u4").astype(int)
    values = np.frombuffer(raw, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path} holds {values.size} values, its header says {shape.tolist()}")
    return values.reshape(shape)


def read_split(folder: Path, prefix: str) -> Split:
    """Read the images and labels of one official split.

    Args:
        folder: Folder of the IDX files.
        prefix: `train` or `t10k`.

    Returns:
        Images uint8 [N,28,28] and labels int64 [N].
    """
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1)
    return Split(images, labels.astype(np.int64))


def choose(split: Split, count: int, seed: int, taken: set[bytes]) -> Ints:
    """Choose images at random, equally many of each class, none with the same content.

    Where `count` is not a multiple of the number of classes, the first classes get one image more.

    Args:
        split: Images uint8 [N,28,28] and labels int64 [N] to choose from.
        count: Number of images to choose.
        seed: Seed of the choice.
        taken: Contents that must not be chosen; the chosen ones are added to it.

    Returns:
        Indices of the chosen images in random order, int64 [count].

    Raises:
        DataError: There are too few different images.
    """
    quota = [count // CLASSES + (c < count % CLASSES) for c in range(CLASSES)]
    chosen: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(split.labels)).tolist():
        label, content = int(split.labels[index]), split.images[index].tobytes()
        if quota[label] and content not in taken:
            quota[label] -= 1
            taken.add(content)
            chosen.append(index)
    if any(quota):
        raise DataError(f"too few different images to choose {count}")
    return np.array(chosen, dtype=np.int64)


def to_input(images: Bytes) -> npt.NDArray[np.float32]:
    """Scale images to what the model takes.

    Args:
        images: Grey values, uint8 [N,28,28].

    Returns:
        Grey values in 0..1, float32 [N,1,28,28].
    """
    return images[:, None].astype(np.float32) / np.float32(255)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that no other process sees it half written.

    Args:
        path: File to make or replace.
        write: Called with the open file; writes the content.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_data(train: Split, test: Split, folder: Path) -> Ints:
    """Write `calibration.npz` and `evaluation.npz`.

    Args:
        train: Official training split, images uint8 [60000,28,28].
        test: Official test split, images uint8 [10000,28,28].
        folder: Where the files go.

    Returns:
        Indices of the evaluation images in the test split, int64 [5000].
    """
    taken: set[bytes] = set()
    evaluation = choose(test, EVALUATION_IMAGES, SEED, taken)
    calibration = choose(train, CALIBRATION_IMAGES, SEED + 1, taken)
    image = to_input(train.images[calibration])
    write_atomically(
        folder / "calibration.npz", lambda file: np.savez_compressed(file, image=image)
    )
    held_out = to_input(test.images[evaluation])
    labels = test.labels[evaluation]
    write_atomically(
        folder / "evaluation.npz",
        lambda file: np.savez_compressed(file, image=held_out, labels=labels),
    )
    return evaluation


def augment(images: Tensor) -> Tensor:
    """Flip and shift each image at random.

    Args:
        images: Batch of images [N,1,H,W].

    Returns:
        Changed images [N,1,H,W]; what is shifted in is background (0).
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (MAX_SHIFT,) * 4)[:, 0]
    shift = torch.randint(2 * MAX_SHIFT + 1, (2, count, 1))
    rows = shift[0] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns) + shift[1]
    batch = torch.arange(count)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]][:, None]


def channels_last_gradient(_: nn.Module, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lay out gradients channels-last: the pooling's backward does not, which slows BatchNorm.

    Args:
        gradients: Gradients with respect to the outputs of a module, each [N,C,H,W].

    Returns:
        The same gradients, channels-last.
    """
    return tuple(g.contiguous(memory_format=torch.channels_last) for g in gradients)


def make_optimizer(net: nn.Module) -> torch.optim.SGD:
    """Create the optimizer; weight decay applies to convolution and linear weights only.

    Args:
        net: Network to train.

    Returns:
        SGD with Nesterov momentum.
    """
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": WEIGHT_DECAY},
        {"params": others},
    ]
    return torch.optim.SGD(groups, lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True)


def train_epochs(
    net: nn.Module, images: Tensor, labels: Tensor, sizes: Sequence[int], *, bf16: bool
) -> Iterator[float]:
    """Train a network, one epoch for each value taken from the iterator.

    Args:
        net: Network to train, in place.
        images: Training images, float32 [N,1,28,28].
        labels: Their classes, int64 [N].
        sizes: Side length of the images in each epoch.
        bf16: Whether to compute in bfloat16 where autocast deems it safe.

    Yields:
        Mean training loss of the epoch.
    """
    optimizer = make_optimizer(net)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps * len(sizes), pct_start=0.25
    )
    for size in sizes:
        net.train()
        total = 0.0
        for index in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            batch = augment(images[index])
            if size != batch.shape[-1]:
                batch = functional.interpolate(batch, size=size, mode="bilinear", antialias=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = net(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(
                logits.float(), labels[index], label_smoothing=LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        yield total / steps


@torch.no_grad()
def correct(net: nn.Module, split: Split) -> npt.NDArray[np.bool_]:
    """Find which images a network classifies correctly, in float32.

    Args:
        net: Network to judge; is put into evaluation mode.
        split: Images uint8 [N,28,28] and labels int64 [N].

    Returns:
        Whether each image's top class is right, bool [N].
    """
    net.eval()
    batches = torch.from_numpy(to_input(split.images)).split(250)
    top = torch.cat([net(batch).argmax(1) for batch in batches])
    right: npt.NDArray[np.bool_] = top.numpy() == split.labels
    return right


def write_weights(net: nn.Module, path: Path) -> None:
    """Write the state dict of a network as safetensors.

    Args:
        net: Network to save.
        path: File to make or replace.
    """
    state = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in net.state_dict().items()
    }
    write_atomically(path, lambda file: file.write(save(state)))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="folder of the IDX files"
    )
    parser.add_argument(
        "--data-only", action="store_true", help="write only the .npz files, do not train"
    )
    parser.add_argument(
        "--fp32", action="store_true", help="train in float32 (faster on CPUs without bfloat16)"
    )
    return parser.parse_args()


def main() -> None:
    """Make the files and report the accuracy."""
    options = parse_arguments()
    try:
        train, test = read_split(options.data, "train"), read_split(options.data, "t10k")
        evaluation = write_data(train, test, HERE)
    except DataError as error:
        sys.exit(f"error: {error}")
    if options.data_only:
        return
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    net = model().to(memory_format=torch.channels_last)
    net.get_submodule("tail").register_full_backward_pre_hook(channels_last_gradient)
    images, labels = torch.from_numpy(to_input(train.images)), torch.from_numpy(train.labels)
    losses = train_epochs(net, images, labels, EPOCH_SIZES, bf16=not options.fp32)
    for epoch, loss in enumerate(losses, start=1):
        print(f"epoch {epoch}/{len(EPOCH_SIZES)}: loss {loss:.4f}", flush=True)  # noqa: T201
    write_weights(net, HERE / "weights.safetensors")
    right = correct(net, test)
    report = f"top-1: test set {right.mean():.2%}, evaluation.npz {right[evaluation].mean():.2%}"
    print(report)  # noqa: T201


if __name__ == "__main__":
    main()
