"""Samples that are image files, in class folders or flat, turned into arrays as in training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bench.errors import InputError, UsageError
from bench.models import Array, TensorSpec
from quantize.feeds import Request, Rows, grouped, with_batch
from quantize.labels import class_labels, labels_beside, natural_key

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Only formats that Pillow decodes itself: EPS, for one, is handed to Ghostscript, which runs it.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_RESIZE_TO_CROP = 0.875
# Models of small images (MNIST, CIFAR) are trained on whole pictures, not on centre crops.
_SMALL_SIDE = 96
# Pillow warns above this and raises at twice as many; decoded, each has three bytes.
_MAX_PIXELS = 89_478_485


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes what the model takes: resize, crop, scale, normalize, lay out.

    Attributes:
        resize: Length of the short side, or exact (height, width), or None to keep the size.
        crop: Centre crop, a square's side or (height, width); None for none. Pads smaller images.
        mean: Subtracted per channel after scaling; one value serves all channels.
        std: Divided by per channel, after that.
        scale: Multiplied with the pixels (0..255) first.
        channel_order: "rgb" or "bgr".
        layout: "nchw", "nhwc", or None to read it from the model's input.
        interpolation: Of the resizing: "nearest", "bilinear", "bicubic" or "lanczos".
        letterbox: Keep the proportions when resizing to an exact size, and pad the rest.
        fill: Pixel value of the padding, 0..255.
        colour: "rgb", "gray", or None to read it from the model's input.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    channel_order: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    letterbox: bool = False
    fill: int = 0
    colour: Literal["rgb", "gray"] | None = None


def image_files(folder: Path) -> list[Path]:
    """Images in a folder, or else in its direct subfolders; in natural order."""
    flat = _images_in(folder)
    if flat:
        return flat
    classes = sorted((p for p in folder.iterdir() if p.is_dir()), key=natural_key)
    return [file for c in classes for file in _images_in(c)]


def read_images(source: str, request: Request) -> Rows:
    """Images as samples; the folder above an image is its class.

    Raises:
        InputError: The model's inputs are not one image, or sizes are unknown.
        UsageError: The preprocessing contradicts the model.
    """
    folder = Path(source)
    files = image_files(folder)
    labels: tuple[object, ...] | None
    if files and files[0].parent == folder:
        labels = labels_beside(folder, files, texts=request.texts)
    else:
        classes = class_labels(sorted({f.parent.name for f in files}))
        labels = tuple(classes[f.parent.name] for f in files)
    if request.limit is not None and request.limit < len(files):
        # Files are sorted by class: the first ones would all be of one class.
        keep = [i * len(files) // request.limit for i in range(request.limit)]
        files = [files[i] for i in keep]
        labels = tuple(labels[i] for i in keep) if labels is not None else None
    spec = _only_input(source, request)
    settled = settle(request.preprocessing, spec)
    rows = Rows(
        count=len(files),
        load=lambda i: {spec.name: with_batch(decode(files[i], settled, spec.dtype), spec)},
        where=lambda i: str(files[i]),
        label=labels.__getitem__ if labels is not None else None,
    )
    return grouped(rows, request.inputs)


def settle(preprocessing: Preprocessing | None, spec: TensorSpec) -> Preprocessing:
    """Fill in what a preprocessing leaves to the model's input.

    Args:
        preprocessing: As configured; None for the defaults of image classification.
        spec: The model's only input.

    Raises:
        InputError: Nothing is configured, and the model does not fix height and width.
        UsageError: Values do not fit each other or the model.
    """
    layout = _layout(preprocessing, spec)
    shape = spec.shape or ()
    axes = (-3, -2, -1) if layout == "nchw" else (-1, -3, -2)
    channels, height, width = (shape[a] if len(shape) >= 3 else None for a in axes)
    colour: Literal["rgb", "gray"] = "gray" if channels == 1 else "rgb"
    if isinstance(channels, int) and channels not in (1, 3):
        raise InputError(
            f"input {spec} has {channels} channels; images have 1 or 3. Give arrays (.npz) instead."
        )
    if preprocessing is None:
        if not isinstance(height, int) or not isinstance(width, int):
            raise InputError(
                f"input {spec} leaves the image size free. Configure the preprocessing "
                "(resize, crop, mean, std)."
            )
        preprocessing = _defaults(height, width, colour, spec)
    settled = replace(preprocessing, layout=layout, colour=preprocessing.colour or colour)
    _refuse_contradictions(settled, spec)
    return settled


def decode(file: Path, preprocessing: Preprocessing, dtype: str) -> Array:
    """Read an image and prepare it.

    Args:
        file: A picture in one of the usual formats.
        preprocessing: With its layout and colour settled.
        dtype: Element type of the model's input; integers get the pixels unscaled.

    Returns:
        [channels, height, width] or [height, width, channels], without a batch axis.

    Raises:
        InputError: The file is damaged, too large, or has more than 8 bits per channel.
    """
    pixels = np.asarray(
        _cropped(_resized(_open(file, preprocessing), preprocessing), preprocessing)
    )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if preprocessing.channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    if np.issubdtype(np.dtype(dtype), np.integer):
        values: Array = pixels.astype(dtype)
    else:
        scaled = pixels.astype(np.float32) * np.float32(preprocessing.scale)
        mean = np.asarray(preprocessing.mean, np.float32)
        values = ((scaled - mean) / np.asarray(preprocessing.std, np.float32)).astype(dtype)
    return values if preprocessing.layout == "nhwc" else values.transpose(2, 0, 1)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()),
        key=natural_key,
    )


def _only_input(source: str, request: Request) -> TensorSpec:
    if len(request.required) != 1:
        names = ", ".join(repr(s.name) for s in request.required)
        raise InputError(
            f"{source}: is a folder of images, the model takes {names}. Write a data function: "
            "--data file.py:function, which yields (feeds, label)."
        )
    spec = request.required[0]
    if spec.shape is not None and len(spec.shape) not in (3, 4):
        raise InputError(f"{source}: is a folder of images, input {spec} is not an image.")
    return spec


def _layout(preprocessing: Preprocessing | None, spec: TensorSpec) -> Literal["nchw", "nhwc"]:
    if preprocessing is not None and preprocessing.layout is not None:
        return preprocessing.layout
    shape = spec.shape or ()
    if len(shape) >= 3 and shape[-1] in (1, 3) and shape[-3] not in (1, 3):
        return "nhwc"
    return "nchw"


def _defaults(
    height: int, width: int, colour: Literal["rgb", "gray"], spec: TensorSpec
) -> Preprocessing:
    raw = spec.dtype == "uint8"
    plain = raw or colour == "gray"
    whole = height != width or height <= _SMALL_SIDE
    chosen = Preprocessing(
        resize=(height, width) if whole else round(height / _RESIZE_TO_CROP),
        crop=(height, width),
        mean=(0.0,) if plain else _IMAGENET_MEAN,
        std=(1.0,) if plain else _IMAGENET_STD,
        scale=1.0 if raw else 1 / 255,
    )
    logger.warning(
        "no preprocessing configured: assuming resize %s, crop %s, scale %.6g, mean %s, std %s. "
        "If training used anything else, accuracy is wrong.",
        chosen.resize,
        chosen.crop,
        chosen.scale,
        chosen.mean,
        chosen.std,
    )
    return chosen


def _refuse_contradictions(p: Preprocessing, spec: TensorSpec) -> None:
    channels = 1 if p.colour == "gray" else 3
    for name, values in (("mean", p.mean), ("std", p.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"preprocessing: {name} has {len(values)} values for {channels} channel(s)."
            )
    if 0 in p.std:
        raise UsageError("preprocessing: std holds 0, which nothing can be divided by.")
    if p.letterbox and not isinstance(p.resize, tuple):
        raise UsageError("preprocessing: letterbox needs resize as (height, width).")
    if p.channel_order == "bgr" and channels == 1:
        raise UsageError("preprocessing: channel_order is bgr, but the images are gray.")
    if "int" in spec.dtype and (set(p.mean) != {0.0} or set(p.std) != {1.0}):
        raise UsageError(
            f"preprocessing: input {spec} takes integers, so mean and std must be left out."
        )


def _open(file: Path, p: Preprocessing) -> "Image.Image":
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=_FORMATS) as image:
            _refuse_unfit(file, image)
            upright = ImageOps.exif_transpose(image)
            return upright.convert("L" if p.colour == "gray" else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise InputError(f"{file}: too large to be decoded safely: {e}. Shrink it.") from e
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise InputError(f"{file}: not a readable image: {e}. Replace or remove it.") from e


def _refuse_unfit(file: Path, image: "Image.Image") -> None:
    """Look at what the header says, before any pixel is decoded."""
    if image.width * image.height > _MAX_PIXELS:
        raise InputError(
            f"{file}: has {image.width} x {image.height} pixels; at most {_MAX_PIXELS:,} are safe "
            "to decode. Shrink it."
        )
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{file}: has more than 8 bits per channel (mode {image.mode}), which would be "
            "clipped. Convert it to 8 bits, or give arrays (.npz)."
        )


def _resized(image: "Image.Image", p: Preprocessing) -> "Image.Image":
    from PIL import Image, ImageOps

    if p.resize is None:
        return image
    method = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }[p.interpolation]
    if isinstance(p.resize, tuple):
        size = (p.resize[1], p.resize[0])
        if p.letterbox:
            return ImageOps.pad(image, size, method, color=_fill(image, p.fill))
        return image.resize(size, method)
    short = min(image.size)
    width, height = (p.resize * side // short for side in image.size)
    return image.resize((max(1, width), max(1, height)), method)


def _cropped(image: "Image.Image", p: Preprocessing) -> "Image.Image":
    from PIL import ImageOps

    if p.crop is None:
        return image
    height, width = p.crop if isinstance(p.crop, tuple) else (p.crop, p.crop)
    if image.width < width or image.height < height:
        size = (max(image.width, width), max(image.height, height))
        left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
        border = (left, top, size[0] - image.width - left, size[1] - image.height - top)
        image = ImageOps.expand(image, border, fill=_fill(image, p.fill))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _fill(image: "Image.Image", value: int) -> int | tuple[int, ...]:
    bands: Sequence[str] = image.getbands()
    return value if len(bands) == 1 else (value,) * len(bands)
