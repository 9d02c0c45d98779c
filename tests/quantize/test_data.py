import dataclasses
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import numpy as np
import pytest

from bench.errors import InputError, ResourceError, UsageError
from bench.models import Feeds, TensorSpec
from quantize import archives
from quantize import data as data_module
from quantize.data import Samples, _digests, infer_inputs, read_samples
from quantize.feeds import digest

X = TensorSpec("x", "float32", ("N", 3))
IMAGE = TensorSpec("image", "float32", ("N", 3, 4, 4))
TOKENS = (TensorSpec("ids", "int64", ("N", "S")), TensorSpec("mask", "int64", ("N", "S")))


def _rows(count: int = 4, width: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def _npz(folder: Path, name: str = "data.npz", *, packed: bool = False, **arrays: Any) -> str:
    (np.savez_compressed if packed else np.savez)(folder / name, **arrays)
    return str(folder / name)


def _plugin(folder: Path, body: str) -> str:
    path = folder / "plugin.py"
    path.write_text("import numpy as np\ndef samples():\n" + body)
    return f"{path}:samples"


def _read(source: str, *inputs: TensorSpec, scratch: Path, **options: Any) -> Samples:
    return read_samples(source, inputs or (X,), scratch=scratch, **options)


# .npz


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_is_cut_along_its_first_axis(tmp_path: Path, *, packed: bool) -> None:
    x = _rows()
    source = _npz(tmp_path, packed=packed, x=x, labels=np.array([3, 1, 2, 0]))
    samples = _read(source, scratch=tmp_path)

    assert len(samples) == 4
    assert samples.labelled
    assert samples[2].label == 2
    assert type(samples[2].label) is int
    np.testing.assert_array_equal(samples[1].feeds["x"], x[1:2])
    np.testing.assert_array_equal(samples[-1].feeds["x"], x[3:])
    assert [s.digest for s in samples] == list(samples.digests)
    with pytest.raises(IndexError):
        samples[4]


def test_uncompressed_arrays_are_read_in_place(tmp_path: Path) -> None:
    large = _rows(7, 5000)
    for rows in (large, np.asfortranarray(large)):
        # Small ones are read: to map them takes longer.
        for x, kind in ((rows, np.memmap), (rows[:3, :9], np.ndarray)):
            arrays = archives.open_arrays(Path(_npz(tmp_path, x=x, y=_rows(2, 5))))
            assert type(arrays["x"]) is kind
            np.testing.assert_array_equal(arrays["x"], x)
            np.testing.assert_array_equal(arrays["y"], _rows(2, 5))


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        _read("x" * 300 + ".npz", scratch=tmp_path)


def test_nobody_can_change_a_sample(tmp_path: Path) -> None:
    for source in (_npz(tmp_path, x=_rows()), _npz(tmp_path, "p.npz", packed=True, x=_rows())):
        with pytest.raises(ValueError, match="read-only"):
            _read(source, scratch=tmp_path)[0].feeds["x"][0, 0] = 1


def test_several_inputs_keep_the_models_order(tmp_path: Path) -> None:
    ids = np.ones((2, 5), np.int64)
    samples = _read(_npz(tmp_path, mask=ids, ids=ids), *TOKENS, scratch=tmp_path)
    assert list(samples[0].feeds) == ["ids", "mask"]
    assert not samples.labelled
    assert samples[0].label is None


def test_the_only_array_feeds_the_only_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        samples = _read(_npz(tmp_path, pixels=_rows()), scratch=tmp_path)
    assert list(samples[0].feeds) == ["x"]
    assert "'pixels' as input 'x'" in caplog.text


def test_a_model_without_a_batch_axis_gets_each_sample_as_it_is(tmp_path: Path) -> None:
    samples = _read(_npz(tmp_path, x=_rows()), TensorSpec("x", "float32", (3,)), scratch=tmp_path)
    assert samples[0].feeds["x"].shape == (3,)


def test_an_array_that_holds_the_batch_axis_already_is_taken_apart(tmp_path: Path) -> None:
    samples = _read(_npz(tmp_path, x=_rows()[:, None]), scratch=tmp_path)
    assert samples[3].feeds["x"].shape == (1, 3)


def test_a_misnamed_label_in_a_folder_is_told_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=_rows(1), labels=np.int64(1))
    with pytest.raises(InputError, match=r"Remove 'labels'\. Labels have to be called 'label'\."):
        _read(str(tmp_path), scratch=tmp_path)[0]


def test_a_column_of_whole_numbers_labels_as_a_vector_does(tmp_path: Path) -> None:
    column = np.array([[2], [0]])
    classes = _read(_npz(tmp_path, x=_rows(2), labels=column), scratch=tmp_path)
    assert classes[0].label == 2
    assert type(classes[0].label) is int
    numbers = _read(_npz(tmp_path, x=_rows(2), labels=column / 2), scratch=tmp_path)
    np.testing.assert_array_equal(numbers[0].label, np.array([1.0]), strict=True)


def test_a_fixed_batch_takes_consecutive_samples(tmp_path: Path) -> None:
    source = _npz(tmp_path, x=_rows(5), labels=np.arange(5))
    samples = _read(source, TensorSpec("x", "float32", (2, 3)), scratch=tmp_path)

    assert len(samples) == 2
    np.testing.assert_array_equal(samples[1].feeds["x"], _rows(5)[2:4])
    np.testing.assert_array_equal(samples[1].label, [2, 3])


def test_states_that_are_not_given_start_as_zeros(tmp_path: Path) -> None:
    state = TensorSpec("h", "float32", (2, "N", 8))
    samples = _read(_npz(tmp_path, x=_rows()), X, state, scratch=tmp_path, states={"h": "h_out"})
    assert samples[0].feeds["h"].shape == (2, 1, 8)
    assert not samples[0].feeds["h"].any()


def test_text_is_read(tmp_path: Path) -> None:
    source = _npz(tmp_path, t=np.array([["a"], ["bcd"]]))
    samples = _read(source, TensorSpec("t", "string", ("N", 1)), scratch=tmp_path)
    assert samples[1].feeds["t"].tolist() == [["bcd"]]


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    x = _rows()
    x[3, 0] = np.nan
    assert len(_read(_npz(tmp_path, x=x), scratch=tmp_path, limit=3)) == 3


def _refusals() -> list[tuple[dict[str, Any], tuple[TensorSpec, ...], str]]:
    nan, inf = _rows(), _rows()
    nan[2, 1] = np.nan
    inf[3, 0] = -np.inf
    return [
        ({"a": _rows(), "b": _rows()}, (X,), "expected the inputs 'x'; found 'a', 'b'"),
        ({"idz": _rows(), "mask": _rows()}, TOKENS, "Did you mean 'idz'"),
        (
            {"x": _rows(), "label": np.arange(4)},
            (X,),
            r"found 'x', 'label'\. Remove 'label'\. Labels have to be called 'labels'\.",
        ),
        ({"x": _rows(), "y": _rows(), "labels": np.arange(4)}, (X,), r"Remove 'y'\.$"),
        ({"x": _rows().astype(np.float64)}, (X,), r"float64.*x.astype\(np.float32\)"),
        ({"x": _rows().astype(np.uint8)}, (X,), "uint8.*pixels, scale and normalize"),
        ({"x": _rows().astype(np.int64)}, (X,), "int64, the model takes float32.*never cast"),
        (
            {"x": _rows()},
            (TensorSpec("x", "float16", ("N", 3)),),
            "float32, the model takes float16",
        ),
        ({"x": _rows(4, 5)}, (X,), r"shape \[1, 5\], the model takes x:float32\[N,3\]"),
        (
            {"image": np.zeros((2, 4, 4, 3), np.float32)},
            (IMAGE,),
            r"NHWC→NCHW.*transpose\(0, 3, 1, 2\)",
        ),
        (
            {"image": np.zeros((2, 4, 4), np.float32)},
            (TensorSpec("image", "float32", ("N", 1, 4, 4)),),
            r"expand_dims\(image, 1\)",
        ),
        ({"x": nan}, (X,), r"sample 2: 'x' holds 1 value.*nan at \[0, 1\]"),
        ({"x": inf}, (X,), r"sample 3: 'x' holds 1 value.*-inf"),
        ({"x": _rows(), "labels": np.arange(3)}, (X,), r"3 label\(s\) for 4 sample"),
        ({"x": _rows(), "labels": np.int64(1)}, (X,), "a single label"),
        ({"ids": np.ones((2, 5), int), "mask": np.ones((3, 5), int)}, TOKENS, "first axis"),
        ({"x": _rows(0)}, (X,), "holds no samples"),
    ]


@pytest.mark.parametrize(("arrays", "inputs", "message"), _refusals())
def test_an_archive_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, Any], inputs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _read(_npz(tmp_path, **arrays), *inputs, scratch=tmp_path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    hostile = np.array([{"a": 1}], dtype=object)
    with pytest.raises(InputError, match=r"'x.npy' holds Python objects"):
        _read(_npz(tmp_path, x=hostile), scratch=tmp_path)
    np.save(tmp_path / "one.npy", hostile)
    with pytest.raises(InputError, match="never loaded"):
        _read(str(tmp_path / "one.npy"), scratch=tmp_path)


def _header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("shape", [(10**9, 10**9), (-2, -3)])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("x.npy", _header(shape) + b"\0" * 24)
    with pytest.raises(InputError, match="damaged or made to deceive"):
        _read(str(tmp_path / "lie.npz"), scratch=tmp_path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _npz(tmp_path, packed=True, x=np.zeros((100_000, 3), np.float32))
    monkeypatch.setattr(archives, "_free_memory", lambda: 1_000_000)
    with pytest.raises(InputError, match="zip bomb"):
        _read(source, scratch=tmp_path)


def test_honest_data_larger_than_memory_is_a_matter_of_resources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
    source = _npz(tmp_path, packed=True, x=x)
    monkeypatch.setattr(archives, "_free_memory", lambda: 1000)
    with pytest.raises(ResourceError, match=r"np.savez instead of np.savez_compressed"):
        _read(source, scratch=tmp_path)
    _read(_npz(tmp_path, "plain.npz", x=x), scratch=tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 100, 300])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    whole = Path(_npz(tmp_path, x=_rows()))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut.npz: not a readable .npz archive"):
        _read(str(tmp_path / "cut.npz"), scratch=tmp_path)


def test_damage_inside_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    path = Path(_npz(tmp_path, packed=True, x=x))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="not a readable"):
        _read(str(path), scratch=tmp_path)


# Folders of arrays


def _folder(folder: Path, count: int = 12, **extra: Any) -> Path:
    for i in range(count):
        np.savez(folder / f"s{i}.npz", x=_rows()[i % 4] + i, **{k: v[i] for k, v in extra.items()})
    return folder


def test_files_come_in_natural_order_and_lacking_batch_axes_are_added(tmp_path: Path) -> None:
    samples = _read(str(_folder(tmp_path, label=np.arange(12))), scratch=tmp_path)
    assert [s.label for s in samples] == list(range(12))
    assert samples[10].feeds["x"].shape == (1, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("file,label\ns0.npy,1\ns1.npy,0\n", [1, 0]), ("s1.npy,b\ns0.npy,2\n", ["2", "b"])],
)
def test_labels_may_lie_beside_the_files(tmp_path: Path, text: str, expected: list[Any]) -> None:
    for i in range(2):
        np.save(tmp_path / f"s{i}.npy", _rows()[i : i + 1])
    (tmp_path / "labels.csv").write_text(text)
    assert [s.label for s in _read(str(tmp_path), scratch=tmp_path)] == expected


def test_texts_beside_the_files_stay_text_where_they_look_like_numbers(tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"s{i}.npy", _rows()[i : i + 1])
    (tmp_path / "labels.csv").write_text("s0.npy,007\ns1.npy,42\n")
    assert [s.label for s in _read(str(tmp_path), scratch=tmp_path)] == [7, 42]
    texts = _read(str(tmp_path), scratch=tmp_path, texts=True)
    assert [s.label for s in texts] == ["007", "42"]


def test_labels_in_an_array_follow_the_sorted_files(tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"s{i}.npy", _rows()[i])
    np.save(tmp_path / "labels.npy", np.array([0.5, 1.5]))
    assert [s.label for s in _read(str(tmp_path), scratch=tmp_path)] == [0.5, 1.5]


def _break(change: Callable[[Path], None], message: str) -> Any:
    return pytest.param(change, message, id=message[:20])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        _break(lambda f: np.save(f / "z.npy", _rows()), "mixes .npy and .npz"),
        _break(lambda f: np.save(f / "labels.npy", np.arange(3)), r"3 label\(s\) for 12"),
        _break(
            lambda f: (f / "labels.csv").write_text("s0.npz,1\n") and None,
            r"11 of 12 sample\(s\) have none, the first is 's1.npz'",
        ),
        _break(lambda f: (f / "labels.csv").write_text("s0.npz\n") and None, "1 fields"),
        _break(lambda f: (f / "s3.npz").write_bytes(b"PK") and None, "s3.npz: not a readable"),
        _break(lambda f: np.savez(f / "s3.npz", y=_rows(), z=_rows()), "s3.npz: expected the in"),
    ],
)
def test_a_damaged_folder_names_the_file(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(_folder(tmp_path))
    with pytest.raises(InputError, match=message):
        _read(str(tmp_path), scratch=tmp_path)


def test_a_folder_without_samples_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(InputError, match=r"0 of 1 entries matched \*.npy, \*.npz or an image"):
        _read(str(tmp_path), scratch=tmp_path)


def test_a_missing_source_is_answered_with_the_nearest(tmp_path: Path) -> None:
    _npz(tmp_path, "calibration.npz", x=_rows())
    with pytest.raises(InputError, match=r"Did you mean 'calibration.npz'"):
        _read(str(tmp_path / "calibrations.npz"), scratch=tmp_path)


def test_an_unknown_format_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("")
    with pytest.raises(UsageError, match=r"unknown data format '.parquet'; known: .*npz"):
        _read(str(tmp_path / "data.parquet"), scratch=tmp_path)


# Data functions


def test_a_function_is_called_once_and_its_samples_are_kept(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    print('noise')\n"
        "    buffer = np.zeros((1, 3), np.float32)\n"
        "    for i in range(40):\n"
        "        buffer[:] = i\n"
        "        yield {'x': buffer}, i if i != 5 else np.int64(5)\n",
    )
    samples = _read(source, scratch=tmp_path / "new")
    assert len(samples) == 40
    assert [float(s.feeds["x"][0, 0]) for s in samples] == list(range(40))
    assert [s.label for s in samples] == list(range(40))
    assert samples[17].feeds["x"][0, 2] == 17
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_label_that_is_one_number_is_read_from_its_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    for i in range(2):
        np.savez(tmp_path / "one" / f"{i}.npz", x=_rows(1), label=i)
        np.savez(tmp_path / "many" / f"{i}.npz", x=_rows(1), label=_rows(1, 2) + i)
    one, many = (_read(str(tmp_path / n), scratch=tmp_path) for n in ("one", "many"))
    opened: list[Path] = []
    real = archives.open_arrays

    def counted(path: Path) -> Any:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(archives, "open_arrays", counted)
    assert one.digest == one.subset([0, 1]).digest
    assert [one.subset([1, 0]).label(i) for i in range(2)] == [1, 0]
    assert len(opened) == 2
    # Whole arrays may be as large as the samples: they are not kept.
    assert many.digest == many.subset([0, 1]).digest
    assert len(opened) == 2 + 4


def test_labels_may_be_anything(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    x = np.zeros((1, 3), np.float32)\n"
        "    yield {'x': x}, np.ones((2, 4))\n"
        "    yield {'x': x}, {'boxes': np.ones((2, 4)), 'classes': ['cat']}\n"
        "    yield [{'x': x}, 'text']\n",
    )
    samples = _read(source, scratch=tmp_path)
    assert np.shape(samples[0].label) == (2, 4)  # type: ignore[arg-type]
    assert isinstance(samples[1].label, dict)
    assert samples[2].label == "text"
    assert samples.digest == _read(source, scratch=tmp_path).digest


def test_a_function_may_yield_text_and_ragged_samples(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    for n in (1, 3):\n        yield {'t': np.array([['word'] * n], dtype=object)}, None\n",
    )
    samples = _read(source, TensorSpec("t", "string", ("N", "S")), scratch=tmp_path)
    assert samples[1].feeds["t"].shape == (1, 3)
    assert samples[1].feeds["t"][0, 0] == "word"
    assert not samples.labelled


def test_a_function_may_leave_states_out(tmp_path: Path) -> None:
    source = _plugin(tmp_path, "    yield {'x': np.zeros((2, 3), np.float32)}, None\n")
    state = TensorSpec("h", "float32", ("N", None))
    samples = _read(source, X, state, scratch=tmp_path, states={"h": "h_out"})
    assert samples[0].feeds["h"].shape == (2, 1)


def test_a_limit_stops_the_function(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    for i in range(3):\n"
        "        yield {'x': np.zeros((1, 3), np.float32)}, i\n"
        "    raise RuntimeError('too far')\n",
    )
    assert len(_read(source, scratch=tmp_path, limit=3)) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    yield {'x': np.zeros((1, 3), np.float32)}, 0\n    raise KeyError('k')\n",
            "plugin.py:4: the data function raised KeyError: 'k'",
        ),
        ("    yield {'x': np.zeros((1, 3))}, 0\n", r"sample 0 \(line 3\): 'x' is float64"),
        ("    yield {'x': [[1.0, 2, 3]]}, 0\n", "'x' is float64"),
        ("    yield {'x': np.zeros(3, np.float32)}, 0\n", r"batch axis is missing: `x\[None\]`"),
        ("    yield {'y': np.zeros((1, 3), np.float32)}, 0\n", "expected the inputs 'x'; fo"),
        ("    yield {'x': np.zeros((1, 3), np.float32)}\n", "is a dict, expected"),
        ("    yield np.zeros(3), 0\n", r"is a tuple of ndarray, int, expected \(feeds, label\)"),
        ("    yield {'x': object()}, 0\n", "holds Python objects"),
        ("    return 5\n", "returned int, expected an iterable"),
        ("    return\n    yield\n", "holds no samples"),
        (
            "    for v in (0, None):\n        yield {'x': np.zeros((1, 3), np.float32)}, v\n",
            "sample 1 has no label, but 1 others have",
        ),
        ("    yield {'x': np.full((1, 3), np.inf, np.float32)}, 0\n", "not finite"),
    ],
)
def test_what_a_function_does_wrong_is_told_with_its_place(
    tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _read(_plugin(tmp_path, body), scratch=tmp_path)


# What the model takes, judged by the data


def test_inputs_are_inferred_and_axes_that_vary_together_share_a_symbol(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    for n in (4, 6):\n"
        "        ids = np.ones((1, n), np.int64)\n"
        "        yield {'ids': ids, 'mask': ids, 'q': np.zeros((1, 2), np.float32)}, 0\n",
    )
    assert [str(s) for s in infer_inputs(source)] == [
        "ids:int64[N,S]",
        "mask:int64[N,S]",
        "q:float32[N,2]",
    ]


def test_first_axes_of_different_sizes_are_not_all_the_batch(tmp_path: Path) -> None:
    source = _plugin(
        tmp_path,
        "    for n in (3, 5):\n"
        "        nodes, edges = np.zeros((n, 8), np.float32), np.zeros((2, 4 * n), np.int64)\n"
        "        state = np.zeros((2, 1, 4), np.float32)\n"
        "        yield {'nodes': nodes, 'edges': edges, 'x': state[:1], 'state': state}, 0\n",
    )
    assert [str(s) for s in infer_inputs(source)] == [
        "nodes:float32[S,8]",
        "edges:int64[2,S1]",
        "x:float32[N,1,4]",
        "state:float32[2,1,4]",
    ]


def test_inputs_are_inferred_from_archives(tmp_path: Path) -> None:
    source = _npz(tmp_path, x=_rows(), labels=np.arange(4))
    assert [str(s) for s in infer_inputs(source)] == ["x:float32[N,3]"]


def test_inputs_are_inferred_from_a_folder_of_archives(tmp_path: Path) -> None:
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", x=_rows(1, 3 + i), label=i)
    assert [str(s) for s in infer_inputs(str(tmp_path))] == ["x:float32[N,S]"]


def test_samples_that_disagree_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=_rows())
    np.savez(tmp_path / "1.npz", x=_rows().astype(np.float64))
    with pytest.raises(InputError, match="sample 1 and sample 0 differ"):
        infer_inputs(str(tmp_path))


# Digests and splitting


def test_a_digest_sees_names_types_shapes_and_values_only() -> None:
    x = _rows()
    same = digest({"a": x, "b": x})
    assert same == digest({"b": np.asfortranarray(x), "a": x.copy()})
    others = [
        {"a": x, "c": x},
        {"a": x, "b": x + 1},
        {"a": x, "b": x.reshape(3, 4)},
        {"a": x, "b": x.view(np.int32)},
    ]
    assert len({same, *map(digest, others)}) == 5
    assert digest({"t": np.array(["a"], "<U9")}) == digest({"t": np.array(["a"])})


def test_the_digest_of_all_samples_sees_the_labels(tmp_path: Path) -> None:
    one = _read(_npz(tmp_path, x=_rows(), labels=np.arange(4)), scratch=tmp_path)
    other = _read(_npz(tmp_path, "b.npz", x=_rows(), labels=np.ones(4, int)), scratch=tmp_path)
    assert one.digests == other.digests
    assert one.digest != other.digest


@pytest.mark.parametrize("count", [1, 15, 1000])
def test_every_sample_has_its_own_digest_whatever_thread_read_it(count: int) -> None:
    def load(i: int) -> Feeds:
        return {"x": np.full(3, i, np.float32)}

    assert _digests(load, count) == tuple(digest(load(i)) for i in range(count))


@pytest.mark.parametrize("slow_ns", [0, 10**12])
def test_samples_that_take_long_are_read_at_once(
    slow_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "available_threads", lambda: 2)
    monkeypatch.setattr(data_module, "_SLOW_NS", slow_ns)
    both, threads = Barrier(2, timeout=30), set()

    def load(i: int) -> Feeds:
        # The first of the first run of each thread, after those that are timed.
        if not slow_ns and i in (8, 70):
            both.wait()
        threads.add(get_ident())
        return {"x": np.full(3, i, np.float32)}

    assert _digests(load, 1000)[999] == digest(load(999))
    assert len(threads - {get_ident()}) == (1 if slow_ns else 2)


@pytest.mark.parametrize("slow_ns", [0, 10**12])
def test_the_first_bad_sample_is_told_whatever_thread_read_it(
    slow_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_SLOW_NS", slow_ns)

    def load(i: int) -> Feeds:
        if i in (500, 501, 990):
            raise InputError(f"sample {i}")
        return {"x": np.zeros(3, np.float32)}

    with pytest.raises(InputError, match="sample 500"):
        _digests(load, 1000)


def test_a_part_has_another_digest_than_the_whole(tmp_path: Path) -> None:
    whole = _read(_npz(tmp_path, x=_rows()), scratch=tmp_path)
    before = whole.digest
    part = whole.subset([0, 1])
    assert part.digest != before == whole.digest
    assert whole.subset(range(4)).digest == before


def test_a_subset_of_a_subset_reads_the_right_samples(tmp_path: Path) -> None:
    whole = _read(_npz(tmp_path, x=_rows(), labels=np.arange(4)), scratch=tmp_path)
    part = whole.subset([3, 1, 2]).subset([1, 0])
    np.testing.assert_array_equal([s.feeds["x"][0] for s in part], _rows()[[1, 3]])
    assert [s.label for s in part] == [1, 3]
    assert part.digests == (whole.digests[1], whole.digests[3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.source = "x"  # type: ignore[misc]
