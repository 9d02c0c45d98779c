"""Reports in a browser: every figure is drawn, nothing runs over, no request leaves the page."""

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cost import Price
from bench.document import bench_document
from bench.islands import Kernel
from bench.kernels import Kernels
from bench.latency import Variant
from bench.load import Load, LoadRun
from bench.machine import describe
from bench.models import Model
from bench.operators import Operators
from bench.others import Other
from bench.peaks import Peaks
from bench.render import (
    Banner,
    Bar,
    Bars,
    Check,
    Column,
    Curve,
    Document,
    Ecdf,
    Forest,
    ForestRow,
    KeyFigure,
    Lines,
    Pair,
    Pairs,
    Paragraph,
    Point,
    Roof,
    Roofline,
    Scatter,
    Section,
    Series,
    Table,
    render,
)
from bench.report import Missing, assemble
from bench.work import Work
from quantize.document import document as quantized_document
from quantize.gate_report import gate_document
from quantize.gating import run_gate
from quantize.inspecting import run_inspect
from quantize.inspection.document import inspection_document
from quantize.job import GateJob, InspectJob
from quantize.report import Report
from tests.fakes import Silent
from tests.graphs import GRAPHS, feeds_for
from tests.int8 import make
from tests.quantize.test_gating import job, shelf, stopwatch
from tests.quantize.test_report import machine, report
from tests.timing import latency

# Fixtures of the tests that make these reports.
__all__ = ["job", "machine", "report", "shelf", "stopwatch"]

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not BROWSER, reason="no Chromium here: apt-get install chromium, or run .ci/run as root"
)
WIDTHS = (390, 1280)

# The page stands in a frame, since a window cannot be as narrow as a phone. Its policy forbids
# scripts, so everything is read from outside.
_PROBE = """
const widths = %s, found = {};
function measure(frame, width) {
  const page = frame.contentDocument, all = [...page.querySelectorAll("body *")];
  const inside = e => !e.closest(".scroll") && !e.closest("svg");
  const name = e => e.tagName + "." + (e.className.baseVal ?? e.className) + " " +
    e.textContent.slice(0, 40);
  const over = all.filter(e => inside(e) && e.getBoundingClientRect().right > width + 1).map(name);
  const figures = [...page.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const rect = e => e.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, rect(t)]);
    const out = texts.filter(([, r]) => r.left < box.left - 2 || r.right > box.right + 2 ||
      r.top < box.top - 2 || r.bottom > box.bottom + 2).map(([t]) => t);
    const meet = [];
    texts.forEach(([a, r], i) => texts.slice(i + 1).forEach(([b, s]) => {
      const x = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const y = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (x > 2 && y > 4) meet.push([a, b]);
    }));
    const marks = [...svg.querySelectorAll("path,rect,circle,line,polyline,polygon")];
    const drawn = marks.filter(m => rect(m).width + rect(m).height > 1);
    return {title: svg.querySelector("title")?.textContent ?? "", width: box.width,
      height: box.height, drawn: drawn.length, out, meet};
  });
  const view = frame.contentWindow;
  return {scroll: page.documentElement.scrollWidth, over, figures,
    requests: view.performance.getEntriesByType("resource").map(r => r.name),
    ground: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color};
}
function next() {
  const width = widths.shift();
  if (width === undefined) { document.title = JSON.stringify(found); return; }
  const frame = document.createElement("iframe");
  frame.style.cssText = `border:0;height:6000px;width:${width}px`;
  frame.onload = () => { found[width] = measure(frame, width); frame.remove(); next(); };
  frame.srcdoc = document.getElementById("page").textContent;
  document.body.append(frame);
}
next();
"""


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Opens a page in a browser without a network and says what it looks like, width by width."""
    folder = tmp_path_factory.mktemp("browser")

    def look(page: str, *flags: str) -> dict[str, Any]:
        probe = _PROBE % list(WIDTHS)
        body = f'<script type="text/plain" id="page">{page.replace("</script", "")}</script>'
        (folder / "probe.html").write_text(
            f"<!DOCTYPE html><meta charset=utf-8><body>{body}<script>{probe}</script>", "utf-8"
        )
        command = [BROWSER, "--headless", "--disable-gpu", "--disable-dev-shm-usage", *flags]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        command += ["--virtual-time-budget=10000", "--dump-dom", (folder / "probe.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert title, done.stderr[-2000:]
        seen: dict[str, Any] = json.loads(html.unescape(title[1]))
        return seen

    return look


def _bar(name: str, i: int) -> Bar:
    return Bar(name, 0.013 * 2**i, low=0.012 * 2**i, high=0.015 * 2**i)


def _series(name: str, i: int) -> Series:
    return Series(name, tuple(0.3 + i / 7 + j % 17 / 50 for j in range(900)))


def _row(name: str, i: int) -> ForestRow:
    low = i / 9 - 0.6 if i % 4 else None
    return ForestRow(name, i / 9 - 0.3, low, i / 9 + 0.2, "pass" if i < 7 else "refuse")


def _curve(name: str, i: int) -> Curve:
    return Curve(name, tuple((2.0**k, 130.0 * k + 9 * i) for k in range(6)))


def _pair(name: str, i: int) -> Pair:
    return Pair(name, 0.013 * 2**i if i % 5 else None, 0.007 * 1.9**i if i % 4 else None)


def gallery() -> Document:
    """Every kind of block, with names and numbers as awkward as real ones."""
    long = "/model/backbone/stage_4/block_2/depthwise_conv/Conv_quantized_output_0_dequantized"
    names = [f"{long}_{i}" if i % 3 == 0 else f"layer {i}" for i in range(14)]
    figures = (
        Bars(
            "Time per layer", "The slowest.", "ms", tuple(map(_bar, names, range(14))), 20, "FP32"
        ),
        Ecdf("Latency", "All samples.", "ms", tuple(map(_series, names, range(5))), log_x=True),
        Forest("Drop", "Intervals.", "points", tuple(map(_row, names, range(14))), 1, "limit 1pt"),
        Scatter(
            "Candidates",
            "Left and up is better.",
            "latency, ms",
            "SQNR, dB",
            tuple(Point(1 + i % 3 / 20, 20 + i % 4 / 9, n) for i, n in enumerate(names)),
            ((1.0, 20.0), (1.1, 20.4)),
        ),
        Lines(
            "Throughput",
            "By streams.",
            "streams",
            "inferences per second",
            tuple(map(_curve, names, range(4))),
            log_x=True,
        ),
        Pairs("Layers", "Twice.", "ms", long, "INT8", tuple(map(_pair, names, range(14)))),
        Roofline(
            "Limits",
            "Higher is faster.",
            11.5,
            (Roof("FP32", 210.0, "baseline"), Roof("INT8", 233.0, "candidate")),
            tuple(Point(20 + i % 2, 9.0 * 1.5**i, n) for i, n in enumerate(names)),
        ),
    )
    table = Table(
        "Layers",
        tuple(Column(f"column {i}", "right" if i else "left") for i in range(11)),
        tuple((n, *[f"{k * 1234.567:,.3f}" for k in range(10)]) for n in names),
    )
    checks = (
        Check("accuracy", "fail", "The drop is 4.2 points, above the limit of 1 point.", long),
    )
    banner = Banner(
        "refuse",
        f"INT8 of {long} must not ship",
        ("The drop is above the limit.",),
        (KeyFigure("latency", "2.57×", "2.48 to 2.64"), KeyFigure("size", "782 kB", "of 2.69 MB")),
    )
    sections = tuple(
        Section(f"Section {i}", (Paragraph(long), f, table)) for i, f in enumerate(figures)
    )
    footer = ("vnnify 0.1.0", "sha256 " + "f" * 64)
    return Document(f"INT8 of {long}", banner, sections, checks, footer, figures[0])


@pytest.fixture
def bench_report() -> Document:
    """Two models in two runtimes at two batch sizes, under load, with limits, prices and a GPU."""
    here = describe()
    models = [Model(Path(f"{n}.onnx"), (), (), 17, n * 16, 2**20) for n in ("fp32", "int8")]
    found = [
        latency(_variant(m, r, batch), 8.0 * batch / (1 + 3 * i + k), spread=0.05)
        for batch in (1, 8)
        for i, m in enumerate(models)
        for k, r in enumerate(("onnxruntime", "openvino"))
    ]
    kernels = [
        Kernel(f"node_Conv_{i}", "Conv", "product", integer=False, primitive="", origins=(), ms=i)
        for i in range(1, 20)
    ]
    gpu = [replace(x, variant=replace(x.variant, device="cuda")) for x in found[::4]]
    report = assemble(here, found, [], [Missing("GPU", "no driver")])
    return bench_document(
        replace(
            report,
            loads=tuple(
                Load(x.variant, n, None, (LoadRun(10**9, (10**6,) * 100 * n, 0, 0, 0.0, 0),))
                for x in found
                for n in (1, 2, 4)
            ),
            works=tuple(Work(m.sha256, b, 10**9 * b, 0, 10**7, ()) for m in models for b in (1, 8)),
            peaks=(Peaks(2, 2e11, 9e11, "onnxruntime", "openvino", 2e10, 2**30),),
            operators=tuple(
                Operators(x.variant, Kernels("openvino", "1", tuple(kernels), (), 0, 9))
                for x in found[1:4:2]
            ),
            merged=(Other("gpu.json", replace(here, gpus=("NVIDIA H100 80GB",)), tuple(gpu)),),
            prices=tuple(Price(d, 0.3, "EUR", "2026-11-22", d) for d in ("cpu", "cuda")),
        )
    )


def _variant(model: Model, runtime: str, batch: int) -> Variant:
    name = f"{model.path.stem}, {runtime}, batch {batch}"
    return Variant(name, model, runtime, "cpu", 2, batch)


@pytest.fixture
def quantize_report(report: Report) -> Document:
    return quantized_document(report)


@pytest.fixture
def gate_report(job: GateJob, tmp_path: Path) -> Document:
    return gate_document(run_gate(job, tmp_path, Silent()))


@pytest.fixture
def inspect_report(tmp_path: Path) -> Document:
    name = "squeeze-and-excite"
    path = make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name)).path
    job = InspectJob(path, None, ("onnxruntime", "openvino"), 1, time=True, command="vnnify")
    return inspection_document(run_inspect(job, tmp_path))


def assert_sound(seen: dict[str, Any], figures: int) -> None:
    for width in WIDTHS:
        at = seen[str(width)]
        assert at["scroll"] <= width, (width, at["over"][:5])
        assert at["over"] == [], width
        assert at["requests"] == []
        assert len(at["figures"]) == figures
        for figure in at["figures"]:
            assert figure["drawn"] >= 4, (width, figure)
            assert 200 < figure["width"] <= width, (width, figure)
            assert figure["height"] > 80, (width, figure)
            assert figure["out"] == [], (width, figure["title"])
            assert figure["meet"] == [], (width, figure["title"])


def test_every_kind_of_figure_is_drawn_and_nothing_runs_over(look: Any) -> None:
    assert_sound(look(render(gallery(), "html")), figures=8)


@pytest.mark.parametrize("kind", ["bench", "quantize", "gate", "inspect"])
def test_real_reports_look_as_they_should(
    look: Any, request: pytest.FixtureRequest, kind: str
) -> None:
    document: Document = request.getfixturevalue(f"{kind}_report")
    blocks = [b for s in document.sections for b in s.blocks]
    figures = sum(not isinstance(b, Paragraph | Table) for b in blocks)
    page = render(document, "html")
    assert len(page.encode()) < 300_000
    assert_sound(look(page), figures + (document.picture is not None))


def test_dark_is_dark_and_light_is_light(look: Any) -> None:
    page = render(gallery(), "html")
    light = look(page)["1280"]
    dark = look(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")["1280"]
    assert brightness(light["ground"]) > 0.9 > 0.4 > brightness(light["ink"])
    assert brightness(dark["ground"]) < 0.2 < 0.7 < brightness(dark["ink"])


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / (3 * 255)


def test_the_probe_sees_what_is_wrong(look: Any) -> None:
    page = render(gallery(), "html")
    broken = page.replace("<main>", '<main><p style="width:2000px">wide</p>')
    broken = broken.replace("</svg>", '<text x="9000" y="20">far</text></svg>', 1)
    seen = look(broken)["390"]
    assert seen["scroll"] > 390
    assert any("wide" in name for name in seen["over"])
    assert seen["figures"][0]["out"] == ["far"]
