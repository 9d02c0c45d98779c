"""Each built-in metric on outputs small enough to score by eye, and the user's own functions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.errors import InputError, UsageError
from quantize.metrics import METRICS, resolve_metric, run_labels
from quantize.scores import cosine

LOGITS = np.array([[0.1, 2.0, -1.0], [3.0, 0.0, 1.0]], np.float32)


def score(name, outputs, labels, reference=None, output=None):
    if isinstance(outputs, np.ndarray):
        outputs = {"y": outputs}
    metric = resolve_metric(name, labelled=True, first_label=0, output=output)
    return metric.score(outputs, np.asarray(labels), reference)


# --- which metric ---


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (3, "top1"),
        (np.int64(3), "top1"),
        (np.array(3), "top1"),
        (True, "top1"),
        (0.5, "mse"),
        (np.zeros(4, np.float32), "mse"),
        (np.array([0, 1, 0], np.float32), "top1"),
        (np.array([0, 1, 0]), "top1"),
        (np.array([0, 1, 1], np.float32), "mse"),
        (np.array([0, 2, 0], np.float32), "mse"),
        (np.array([1], np.float32), "mse"),
        (np.zeros((4, 4), np.int64), "cosine"),
        ("cat", "cosine"),
        ([1.0, [2.0]], "cosine"),
        ({"boxes": []}, "cosine"),
    ],
)
def test_the_default_metric_fits_the_labels(label, name):
    assert resolve_metric(None, labelled=True, first_label=label).name == name


def test_without_labels_the_default_compares_with_fp32():
    metric = resolve_metric(None, labelled=False)
    assert metric.name == "cosine"
    assert metric.needs == "reference"


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'topl'.*Did you mean 'top.*mse.*file\.py:function"):
        resolve_metric("topl", labelled=True)


def test_a_metric_without_its_labels_is_refused():
    with pytest.raises(UsageError, match=r"needs labels.*agreement"):
        resolve_metric("top1", labelled=False)


def test_the_table_knows_directions():
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"mae", "mse", "cer", "wer"}
    assert all(name == metric.name for name, metric in METRICS.items())


# --- labels of one run ---


def test_numbers_become_one_entry():
    assert run_labels(3, 1).tolist() == [3]
    assert run_labels(np.float32(0.5), 1).tolist() == [0.5]
    assert run_labels(np.array(3), 1).tolist() == [3]


def test_arrays_get_a_first_axis():
    assert run_labels(np.zeros((4, 5)), 1).shape == (1, 4, 5)
    assert run_labels(np.zeros((1, 5)), 1).shape == (1, 1, 5)


def test_arrays_of_a_fixed_batch_stay_as_they_are_and_cannot_be_changed():
    labels = run_labels(np.arange(4), 4)
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


def test_other_labels_become_lists():
    assert run_labels({"a": 1}, 1) == [{"a": 1}]
    assert run_labels("cat", 1) == ["cat"]
    assert run_labels(["a", "b"], 2) == ["a", "b"]
    assert run_labels(None, 2) == [None, None]


# --- classes ---


def test_top1_counts_the_best_class():
    assert score("top1", LOGITS, [1, 2]) == [1.0, 0.0]


def test_top1_takes_the_lower_class_of_a_tie():
    assert score("top1", np.array([[1.0, 1.0]]), [0]) == [1.0]
    assert score("top1", np.array([[1.0, 1.0]]), [1]) == [0.0]


def test_top5_counts_the_five_best_and_ties_go_to_lower_classes():
    ranked = np.array([[9.0, 8, 7, 6, 5, 5, 1]])
    assert [score("top5", ranked, [c])[0] for c in range(7)] == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 1, 3), (2, 1, 3)])
def test_axes_of_size_one_do_not_matter(shape):
    assert score("top1", LOGITS.reshape(shape), [1, 0]) == [1.0, 1.0]


def test_label_arrays_with_an_axis_of_one_are_the_same_labels():
    assert score("top1", LOGITS, [[1], [0]]) == [1.0, 1.0]


def test_a_model_without_a_batch_axis_is_one_sample():
    assert score("top1", LOGITS[0], [1]) == [1.0]


def test_the_first_output_with_classes_is_scored():
    outputs = {"loss": np.array([0.5]), "y": LOGITS[:1], "z": -LOGITS[:1]}
    assert score("top1", outputs, [1]) == [1.0]
    assert score("top1", outputs, [1], output="z") == [0.0]


def test_an_output_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UsageError, match=r"no output 'q'.*'y' float32\[2, 3\]"):
        score("top1", LOGITS, [1, 0], output="q")


def test_predicted_classes_are_compared_as_they_are():
    assert score("top1", np.array([4, 7]), [4, 8]) == [1.0, 0.0]


def test_segmentation_scores_the_share_of_pixels():
    maps = np.zeros((1, 3, 2, 2), np.float32)
    maps[0, 2] = 1
    assert score("top1", maps, np.array([[[2, 2], [2, 0]]])) == [0.75]


def test_token_classes_on_the_last_axis_are_recognized():
    tokens = np.zeros((1, 4, 3), np.float32)
    tokens[0, :, 1] = 1
    assert score("top1", tokens, [[1, 1, 1, 0]]) == [0.75]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (3, "label 3 is out of range.*3 classes.*0 to 2.*1-based"),
        (-1, "label -1 is out of range"),
        (17, "label 17 is out of range.*index of the class"),
        (0.5, "label 0.5 is no class"),
    ],
)
@pytest.mark.parametrize("name", ["top1", "top5"])
def test_labels_that_are_no_class_are_refused(name, label, words):
    with pytest.raises(InputError, match=words):
        score(name, LOGITS[:1], [label])


def test_whole_floats_are_classes():
    assert score("top1", LOGITS, [1.0, 0.0]) == [1.0, 1.0]


def test_a_missing_label_is_refused():
    metric = resolve_metric("top1", labelled=True)
    with pytest.raises(InputError, match="None is no class"):
        metric.score({"y": LOGITS[:1]}, run_labels(None, 1))


@pytest.mark.parametrize("metric", ["top1", "top5", "f1"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_one_hot_labels_are_those_of_their_classes(metric, dtype):
    outputs = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    classes = np.arange(8) % 6
    wanted = score(metric, outputs, classes)
    np.testing.assert_array_equal(score(metric, outputs, np.eye(6, dtype=dtype)[classes]), wanted)


@pytest.mark.parametrize("label", [[0, 1, 1], [0, 0, 0], [0, 2, 0]])
def test_labels_of_several_classes_are_no_one_hot_labels(label):
    with pytest.raises(InputError, match=r"label \[0.*names no class.*one-hot.*mse"):
        score("top1", LOGITS[:1], np.array([label]))


def test_only_a_metric_of_one_output_is_partial():
    """What is left out is told to the user, so no row may claim more than it looks at."""
    found = {name for name in METRICS if not resolve_metric(name, labelled=True).is_partial}
    assert found == {"cosine", "sqnr", "psnr", "map", "map50"}
    assert resolve_metric("cosine", labelled=True, output="y").is_partial


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\[2, 3\].*\[3\]"):
        score("top1", LOGITS, [0, 1, 2])


def test_one_value_per_sample_has_no_best_class():
    with pytest.raises(InputError, match="--metric logit"):
        score("top1", np.array([[0.7]]), [1])


def test_yes_or_no_outputs_have_metrics_of_their_own():
    assert score("logit", np.array([[0.2], [-0.2]]), [1, 1]) == [1.0, 0.0]
    assert score("probability", np.array([[0.2], [0.8]]), [0, 1]) == [1.0, 1.0]
    assert score("probability", np.array([[0.2], [0.8]]), [[1], [1]]) == [0.0, 1.0]


def test_a_logit_is_not_taken_for_a_probability():
    with pytest.raises(InputError, match=r"2.5, which is no probability.*--metric logit"):
        score("probability", np.array([[2.5]]), [1])


def test_chance_is_one_over_the_classes():
    assert METRICS["top1"].chance({"y": LOGITS}) == pytest.approx(1 / 3)
    assert METRICS["top5"].chance({"y": np.zeros((1, 10))}) == 0.5
    assert METRICS["top5"].chance({"y": LOGITS}) == 1.0
    assert METRICS["logit"].chance({"y": np.zeros((1, 1))}) == 0.5
    assert METRICS["top1"].chance({"y": np.zeros((1, 3, 2, 2))}) is None
    assert METRICS["mse"].chance({"y": LOGITS}) is None


def test_agreement_needs_no_labels():
    metric = METRICS["agreement"]
    other = np.array([[0.1, 2.0, -1.0], [0.0, 3.0, 1.0]], np.float32)
    assert metric.score({"y": other}, [None, None], {"y": LOGITS}) == [1.0, 0.0]
    with pytest.raises(InputError, match="does not fit"):
        metric.score({"y": LOGITS[:1]}, [None, None], {"y": LOGITS})
    with pytest.raises(UsageError, match="none were kept"):
        metric.score({"y": LOGITS}, [None, None])


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5, 1), (2, 3, 1, 5)])
def test_places_agree_where_their_best_classes_do(shape: tuple[int, ...]) -> None:
    classes = np.array([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    others = np.array([[0, 1, 2, 0, 2], [2, 2, 1, 0, 0]])

    def scores(best: Any) -> Any:
        last = np.eye(3, dtype=np.float32)[best]
        return last.reshape(shape) if len(shape) == 3 else np.moveaxis(last, 2, 1).reshape(shape)

    found = METRICS["agreement"].score({"y": scores(others)}, [None] * 2, {"y": scores(classes)})
    assert found == pytest.approx([0.8, 1.0])


# --- numbers ---


def test_errors_are_means_over_each_sample():
    found = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    wanted = np.array([[0.0, 0.0], [0.0, 0.0]])
    assert score("mae", found, wanted) == [1.5, 0.0]
    assert score("mse", found, wanted) == [2.5, 0.0]


def test_errors_do_not_overflow_the_outputs_own_type():
    assert score("mse", np.array([[60000.0]], np.float16), [[-60000.0]]) == [1.44e10]


def test_a_number_per_sample_fits_a_column():
    assert score("mae", np.array([[1.0], [2.0]]), [1.5, 2.0]) == [0.5, 0.0]


def test_errors_against_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match="does not fit"):
        score("mse", np.zeros((1, 3)), [[0.0, 0.0]])
    with pytest.raises(InputError, match="Labels that name classes have to be integers"):
        score("mse", np.zeros((1, 3)), [2.0])


def test_errors_against_text_are_refused():
    with pytest.raises(InputError, match="'cat' is not numeric"):
        METRICS["mse"].score({"y": np.zeros((1, 1))}, ["cat"])


def test_cosine_is_the_least_over_all_float_outputs():
    reference = {"a": np.array([1.0, 0.0]), "b": np.array([1.0, 0.0]), "n": np.array([1])}
    outputs = {"a": np.array([2.0, 0.0]), "b": np.array([1.0, 1.0]), "n": np.array([5])}
    assert METRICS["cosine"].score(outputs, [None], reference) == [pytest.approx(0.5**0.5)]
    chosen = resolve_metric("cosine", labelled=False, output="a")
    assert chosen.score(outputs, [None], reference) == [pytest.approx(1.0)]


def test_cosine_without_float_outputs_is_refused():
    with pytest.raises(InputError, match="--metric agreement"):
        METRICS["cosine"].score({"n": np.array([1])}, [None], {"n": np.array([1])})


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, -np.inf], [2.0, -np.inf], 1.0),
        ([1.0, -np.inf], [1.0, 0.0], 0.0),
        ([1.0, 2.0], [1.0, 2.0, 3.0], 0.0),
        ([1e-30, 1e-30], [1e-30, 1e-30 * 1.5], 2.5 / 2**0.5 / 3.25**0.5),
    ],
)
def test_cosine_at_its_edges(wanted, found, expected):
    result = cosine(np.array(wanted, np.float32), np.array(found, np.float32))
    assert result == pytest.approx(expected)


@given(
    hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
)
def test_cosine_is_symmetric_and_in_bounds(a, b):
    assert cosine(a, a) == 1.0
    assert 0 <= cosine(a, b) <= 1
    assert cosine(a, b) == pytest.approx(cosine(b, a))


# --- the user's own ---


@pytest.fixture
def plugin(tmp_path):
    def write(body, *, extra=""):
        file = tmp_path / "mine.py"
        file.write_text(f"import numpy as np\ndef f(outputs, labels):\n    {body}\n{extra}\n")
        return resolve_metric(f"{file}:f", labelled=True), file

    return write


@pytest.mark.parametrize(
    "body",
    [
        "return [0.25]",
        "return 0.25",
        "return np.array([0.25])",
        "return np.float32(0.25)",
        "return (0.25,)",
    ],
)
def test_plugins_return_scores_in_any_plain_form(plugin, body):
    metric, _ = plugin(body)
    assert metric.score({"y": LOGITS[:1]}, run_labels(1, 1)) == [0.25]
    assert metric.higher_is_better


def test_plugins_get_outputs_and_labels_as_promised(plugin):
    metric, _ = plugin("return [float(labels[0] + outputs['y'].shape[0])]")
    assert metric.score({"y": LOGITS[:1]}, run_labels(5, 1)) == [6.0]


def test_plugins_say_their_direction_and_bounds(plugin):
    metric, _ = plugin("return 1.0", extra="f.higher_is_better = False")
    assert not metric.higher_is_better
    assert metric.bounded is False
    metric, _ = plugin("return 1.0", extra="f.bounded = True\nf.binary = False")
    assert metric.bounded is True
    assert metric.binary is False
    metric, _ = plugin("return 1.0")
    assert metric.bounded is None
    assert metric.binary is None


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("raise ValueError('no such box')", 3, "ValueError: no such box"),
        ("return [float('nan')]", 2, "returned nan"),
        ("return [float('inf')]", 2, "returned inf"),
        ("return [1.0, 2.0]", 2, "returned 2 scores for 1 samples"),
        ("return []", 2, "returned 0 scores for 1 samples"),
        ("return [[1.0]]", 2, r"returned list \[\[1.0\]\]"),
        ("return None", 2, "returned NoneType"),
        ("return '1.0'", 2, "returned str"),
        ("return object()", 2, "returned object"),
        ("return [1.0 + 2.0j]", 2, "returned list"),
        ("import sys; sys.exit(0)", 3, "SystemExit: 0"),
        ("outputs['y'][0] = 0; return 1.0", 3, "read-only"),
    ],
)
def test_plugins_that_misbehave_are_named_with_their_line(plugin, body, line, words):
    metric, file = plugin(body)
    with pytest.raises(InputError, match=words) as caught:
        metric.score({"y": LOGITS[:1].copy()}, run_labels(1, 1))
    assert f"{file}:{line}" in str(caught.value)


@pytest.mark.parametrize("score", [-0.1, 1.5])
def test_a_promise_of_bounds_has_to_be_kept(plugin, score):
    metric, _ = plugin(f"return {score}", extra="f.bounded = True")
    with pytest.raises(InputError, match=r"promises scores in 0\.\.1"):
        metric.score({"y": LOGITS[:1]}, run_labels(1, 1))


def test_plugins_print_to_stderr(plugin, capsys):
    metric, _ = plugin("print('hello'); return 1.0")
    metric.score({"y": LOGITS[:1]}, run_labels(1, 1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_plugins_cannot_change_what_others_see(plugin):
    metric, _ = plugin("outputs.clear(); return 1.0")
    outputs = {"y": LOGITS[:1]}
    metric.score(outputs, run_labels(1, 1))
    assert list(outputs) == ["y"]
