"""The comparison of quantizers runs, on one small case and two of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import forecast as forecasts
from bench.errors import UnsupportedError
from bench.latency import Latency
from bench.rounds import Round
from bench.yardsticks import Bout, Yardsticks
from quantize import gains
from tests.benchmarks import gains as gains_table
from tests.benchmarks import graphs, predictions, quantizers, rivals, searches
from tests.benchmarks.cases import find_case, read_case
from tests.fakes import MS


def test_a_case_is_compared_from_graph_to_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The smallest of them; each process of the run costs a second.
    folder = tmp_path / "folders" / "old"
    folder.mkdir(parents=True)
    graphs.constant_nodes(folder)
    out = tmp_path / "out"
    rivals = "native,native vnni,static"
    asked = ["--models", str(folder.parent), "--rivals", rivals, "--out", str(out)]
    assert quantizers.main([*asked, "--quick"]) == 0
    shown = capsys.readouterr().out
    assert shown == (out / "quantizers.md").read_text("utf-8")
    record = json.loads((out / "quantizers.json").read_text("utf-8"))
    rows = {r["rival"]: r for r in record["rows"]}
    assert list(rows) == ["native", "native vnni", "static"]
    native = rows["native"]
    assert native["failed"] == ""
    assert native["score"]["loads"] == ["onnxruntime", "openvino"]
    assert native["score"]["noise_db"] > 20
    assert native["cost"]["peak_rss_bytes"] > native["cost"]["calibrate_s"] > 0
    assert set(native["speedup"]) == {"onnxruntime", "openvino"}
    assert record["machine"]["cpu"]
    assert record["cases"]["old"]["samples"] > 0
    narrowing = record["cases"]["old"]["narrowing"]
    assert narrowing["native"] == {"channels": 0, "outputs": 0, "wrong": 0}
    assert narrowing["native vnni"]["channels"] > 0
    assert "native loses" in shown
    # The files that were compared are large, and gone.
    assert not list(out.rglob("*.onnx"))


def test_a_quantizer_that_fails_is_a_row_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = quantizers.Row("a", "static", failed="Fail: /a/b-c/int8.onnx: no | pipe")
    about = {"percent": True, "metric": "top1", "fp32": 0.9, "samples": 10}
    good = quantizers.Row("a", "native", {"seconds": 1.0}, {"exact": 0.88, "drop": 0.02})
    better = quantizers.Row("a", "nncf", {"seconds": 9.0}, {"exact": 0.895, "drop": 0.005})
    lines = quantizers._table("a", about, [row, good, better])
    assert any(x.startswith("| static | fails |") for x in lines)
    assert "- static: Fail: int8.onnx: no / pipe" in lines
    assert "- **native is behind nncf by 0.015; one sample counts 0.1.**" in lines
    lucky = quantizers.Row("a", "nncf", {}, {"drop": -0.03})
    assert quantizers._behind(about, [replace(good, score={"drop": 0.0}), lucky]) == []
    assert quantizers._behind(about, [good]) == []


def test_what_narrow_weights_cost_is_said() -> None:
    saturating = {"channels": 50, "outputs": 1000, "wrong": 250}
    safe = {"channels": 0, "outputs": 0, "wrong": 0}
    rows = [quantizers.Row("a", "native", {"narrowed": 30, "channels": 1200})]

    def said(lost: float, low: float) -> str:
        found = {"lost": lost, "low": low, "high": 0.005, "native": safe}
        about = {"percent": True, "fp32": 0.9, "narrowing": found | {"native vnni": saturating}}
        (line,) = quantizers._narrowed(about, rows)
        return line

    assert said(0.003, 0.001) == (
        "- **native loses 0.3 pt to native vnni (95 %: 0.1 to 0.5)**. 30 of 1,200 channels use "
        "less than 8 bits. Channels that can saturate without VNNI: 0 of native's, 50 of native "
        "vnni's; there 25.0% of the outputs looked at do, 0 of native's."
    )
    # Within a fifth of a point, or within what chance does.
    assert "**" not in said(0.0019, 0.001)
    assert "**" not in said(0.003, -0.001)
    assert quantizers._narrowed({"percent": True, "fp32": 0.9}, rows) == []


def test_searches_are_shown_side_by_side() -> None:
    about = {"percent": True, "metric": "top1", "fp32": 0.9, "samples": 10, "limit": 0.01}
    cost = {"evaluations": 1.25, "seconds": 9.0, "search_s": 4.0, "replay_s": 2.0}
    cost["first_pass_s"] = 3.0
    ours = quantizers.Row("a", "vnnify", cost, {"drop": 0.002}, {"openvino": 2.5})
    theirs = quantizers.Row("a", "nncf accuracy control", failed="it ran over its time")
    options = searches._parse(["--quick", "--max-drop", "1pt"])
    text = searches.render([ours, theirs], {"a": about}, options)
    assert "| a | vnnify | +0.2 pt | yes | 3.0 | 1.2 | 9.0 | 4.0 | 2.0 |  | 2.50× |" in text
    assert "- a, nncf accuracy control: it ran over its time" in text
    ours.cost["first_pass_share"] = 0.25
    assert "| 3.0 on 25% |" in searches.render([ours, theirs], {"a": about}, options)


@pytest.mark.parametrize("name", list(graphs.GRAPHS))
def test_each_structural_case_is_whole(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    graphs.GRAPHS[name](folder)
    found = read_case(find_case(folder), tmp_path, 8, 8)
    assert (len(found.calibration), len(found.evaluation)) == (8, 8)
    order = rivals.Order(find_case(folder), found, tmp_path, 8, "vnni")
    assert rivals._fp32(order)[0] == folder / "model.onnx"


def test_a_folder_without_a_model_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.onnx"):
        find_case(tmp_path)
    graphs.constant_nodes(tmp_path)
    (tmp_path / "data.npz").unlink()
    with pytest.raises(FileNotFoundError, match="holds none of"):
        find_case(tmp_path)


def test_states_reach_every_quantizer(tmp_path: Path) -> None:
    from tests.quantize.test_nncf import recurrent

    folder = tmp_path / "stateful"
    folder.mkdir()
    recurrent(folder / "model.onnx")
    np.savez(folder / "data.npz", x=np.ones((8, 4), np.float32))
    (folder / "case.json").write_text('{"states": {"state_out": "state"}}', "utf-8")
    case = find_case(folder)
    data = read_case(case, tmp_path, 3, 8)
    fed = rivals.Order(case, data, tmp_path, 3, "vnni").feeds()
    assert [float(f["state"][0, 0]) for f in fed] == [0, 2, 6]
    shutil.rmtree(folder)


def test_predictions_are_printed_beside_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.constant_nodes(tmp_path)
    kinds = {f"{k} float": 1.0 for k in ("convolution", "pointwise", "depthwise", "matrix")}

    def measured(runtime: str, threads: int, models: Any = (), **rest: Any) -> Bout:
        found = Yardsticks(runtime, "1", threads, "", kinds | {"other": 1.0})
        shares = {i: {"other": 1.0} for i in range(len(models))}
        return Bout(found, dict.fromkeys(shares, 2.0), shares if rest.get("shares") else {})

    monkeypatch.setattr(predictions, "measure_bout", measured)
    monkeypatch.setattr(forecasts, "measure_bout", measured)
    monkeypatch.setattr(predictions, "available_threads", lambda: 2)
    rounds = (Round(MS, MS, (), (MS,) * 64, 2**20, 0.0, 0.0, 0),)
    monkeypatch.setattr(
        predictions, "measure", lambda vs, *_, **__: [Latency(v, "1", "f", rounds) for v in vs]
    )
    predictions.main([str(tmp_path / "model.onnx")])
    out = capsys.readouterr().out
    assert "| matrix float | 1.0000 | 1.0000 | 1.0× |" in out
    assert f"| {tmp_path.name}/model.onnx openvino, one thread | 2 | 2 | 1.00× |" in out


def test_a_case_says_what_makes_it_in_pytorch(tmp_path: Path) -> None:
    graphs.constant_nodes(tmp_path)
    bare = find_case(tmp_path)
    assert bare.module is None
    order = rivals.Order(bare, read_case(bare, tmp_path, 8, 1), tmp_path, 8, "vnni")
    for rival in ("native via torch", "inc"):
        with pytest.raises(UnsupportedError, match=r"^no module$"):
            rivals.RIVALS[rival][1](order)
    (tmp_path / "net.py").touch()
    facts = {"module": "net.py:build", "weights": "package.weights"}
    (tmp_path / "case.json").write_text(json.dumps(facts), encoding="utf-8")
    found = find_case(tmp_path)
    assert (found.module, found.weights) == (f"{tmp_path}/net.py:build", "package.weights")


def test_every_time_that_chooses_the_first_plan_has_a_measurement() -> None:
    source = Path(gains_table.__file__).read_text(encoding="utf-8")
    times = [name for name in vars(gains) if name.endswith("_NS")]
    assert len(times) == 10
    assert all(f'"{name}"' in source for name in times)
