import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import InputError, UsageError
from bench.models import TensorSpec
from quantize.data import Samples, infer_inputs, read_samples
from quantize.images import Preprocessing, decode, settle

NCHW = TensorSpec("image", "float32", ("N", 3, 8, 8))
NHWC = TensorSpec("image", "float32", ("N", 8, 8, 3))
PLAIN = Preprocessing()


def _save(path: Path, colour: Any, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def _read(folder: Path, spec: TensorSpec = NCHW, **options: Any) -> Samples:
    options.setdefault("preprocessing", PLAIN)
    return read_samples(str(folder), (spec,), scratch=folder, **options)


def _decode(path: Path, spec: TensorSpec = NCHW, **settings: Any) -> np.ndarray[Any, Any]:
    return decode(path, settle(Preprocessing(**settings), spec), spec.dtype)


def test_class_folders_are_numbered_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(["dog", "ant", "cat"]):
        _save(tmp_path / name / "x.png", (i, 0, 0))
    samples = _read(tmp_path)
    assert [s.label for s in samples] == [0, 1, 2]
    assert [round(float(s.feeds["image"][0, 0, 0, 0]) * 255) for s in samples] == [1, 2, 0]


def test_class_folders_that_are_numbers_keep_them(tmp_path: Path) -> None:
    for name in ("2", "10", "007"):
        _save(tmp_path / name / "x.png", 0)
    assert [s.label for s in _read(tmp_path)] == [2, 7, 10]


def test_flat_images_take_labels_from_a_table(tmp_path: Path) -> None:
    _save(tmp_path / "i10.png", 1)
    _save(tmp_path / "i9.png", 2)
    assert not _read(tmp_path).labelled
    (tmp_path / "labels.csv").write_text("file,label\ni9.png,4\ni10.png,5\n")
    assert [s.label for s in _read(tmp_path)] == [4, 5]
    assert [s.label for s in _read(tmp_path, texts=True)] == ["4", "5"]


def test_a_limit_is_spread_over_the_classes(tmp_path: Path) -> None:
    for label in range(3):
        for k in range(4):
            _save(tmp_path / str(label) / f"{k}.png", (label, k, 0))
    assert [s.label for s in _read(tmp_path, limit=3)] == [0, 1, 2]


def test_a_fixed_batch_joins_images(tmp_path: Path) -> None:
    for k in range(4):
        _save(tmp_path / f"{k}.png", (k, 0, 0))
    samples = _read(tmp_path, TensorSpec("image", "float32", (2, 3, 8, 8)))
    assert len(samples) == 2
    assert samples[1].feeds["image"].shape == (2, 3, 8, 8)


def test_channels_scale_mean_and_order_are_applied(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", (255, 0, 51))
    values = _decode(path, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0))
    np.testing.assert_allclose(values[:, 0, 0], [1.0, -2.0, 0.2], atol=1e-6)
    swapped = _decode(path, NHWC, channel_order="bgr", scale=1.0)
    assert swapped.shape == (8, 8, 3)
    assert swapped[0, 0].tolist() == [51, 0, 255]


def test_gray_models_get_one_channel(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", (255, 255, 255))
    spec = TensorSpec("image", "float32", ("N", 1, 8, 8))
    values = _decode(path, spec)
    assert values.shape == (1, 8, 8)
    assert values.max() == 1.0


def test_models_of_bytes_get_the_pixels(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", (7, 8, 9))
    spec = TensorSpec("image", "uint8", ("N", 8, 8, 3))
    values = _decode(path, spec)
    assert values.dtype == np.uint8
    assert values[0, 0].tolist() == [7, 8, 9]
    with pytest.raises(UsageError, match="takes integers"):
        settle(Preprocessing(mean=(0.5,)), spec)


def test_the_short_side_is_resized_and_the_centre_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    values = _decode(tmp_path / "a.png", resize=8, crop=(8, 8), interpolation="nearest")
    assert values.shape == (3, 8, 8)
    assert values.min() == 1.0


def test_images_below_the_crop_are_padded_in_the_middle(tmp_path: Path) -> None:
    values = _decode(_save(tmp_path / "a.png", (255,) * 3, (4, 4)), crop=8, fill=51)
    assert values[0, 0, 0] == pytest.approx(0.2)
    assert (values[:, 2:6, 2:6] == 1).all()
    assert values.sum() == pytest.approx(3 * (16 + 48 * 0.2), rel=1e-5)


def test_letterboxing_keeps_proportions(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", (255,) * 3, (16, 8))
    values = _decode(path, resize=(8, 8), letterbox=True)
    assert values[0, :, 4].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), (0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert _decode(tmp_path / "a.jpg", TensorSpec("x", "float32", ("N", "H", "W", 3))).shape == (
        16,
        8,
        3,
    )


def test_defaults_are_those_of_imagenet_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = TensorSpec("image", "float32", ("N", 3, 224, 224))
    with caplog.at_level(logging.WARNING):
        settled = settle(None, spec)
    assert (settled.resize, settled.crop, settled.layout) == (256, (224, 224), "nchw")
    assert settled.mean == (0.485, 0.456, 0.406)
    assert "no preprocessing configured" in caplog.text
    values = decode(_save(tmp_path / "a.jpg", (124, 116, 104), (300, 280)), settled, "float32")
    assert values.shape == (3, 224, 224)
    assert abs(values).max() < 0.1


@pytest.mark.parametrize(
    ("shape", "resize"), [((1, 28, 28), (28, 28)), ((3, 32, 32), (32, 32)), ((3, 48, 96), (48, 96))]
)
def test_small_and_oblong_defaults_keep_the_whole_picture(
    shape: tuple[int, int, int], resize: tuple[int, int]
) -> None:
    assert settle(None, TensorSpec("x", "float32", ("N", *shape))).resize == resize


def test_the_layout_is_read_from_the_model() -> None:
    assert settle(PLAIN, NHWC).layout == "nhwc"
    assert settle(PLAIN, NCHW).layout == "nchw"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (TensorSpec("x", "float32", ("N", 3, "H", "W")), InputError, "leaves the image size free"),
        (TensorSpec("x", "float32", ("N", 6, 8, 8)), InputError, "has 6 channels"),
    ],
)
def test_models_that_do_not_say_enough_are_refused(
    spec: TensorSpec, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        settle(None, spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (1.0, 2.0)}, r"mean has 2 values for 3 channel"),
        ({"std": (0.0,)}, "std holds 0"),
        ({"letterbox": True, "resize": 8}, "letterbox needs resize"),
        ({"channel_order": "bgr", "colour": "gray"}, "images are gray"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settle(Preprocessing(**settings), NCHW)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b.png: not a readable image"):
        _read(tmp_path)
    (tmp_path / "b.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(InputError, match=r"b.png: not a readable image"):
        _read(tmp_path)


def _huge_png(path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    _huge_png(tmp_path / "bomb.png", side)
    with pytest.raises(InputError, match=r"bomb.png: .*pixels"):
        _read(tmp_path)


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 1000, mode="I;16")
    with pytest.raises(InputError, match="more than 8 bits"):
        _read(tmp_path)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0, (9, 8))
    with pytest.raises(InputError, match=r"shape \[1, 3, 8, 9\]"):
        _read(tmp_path)


def test_images_do_not_feed_two_inputs(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0)
    specs = (NCHW, TensorSpec("other", "float32", ("N",)))
    with pytest.raises(InputError, match=r"the model takes 'image', 'other'.*file.py:function"):
        read_samples(str(tmp_path), specs, scratch=tmp_path)


def test_inputs_cannot_be_inferred_from_images(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0)
    with pytest.raises(UsageError, match="--input image:f32"):
        infer_inputs(str(tmp_path))
