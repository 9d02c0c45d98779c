"""An inspection's tables and figures."""

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.islands import Kernel
from bench.kernels import Kernels
from bench.render import Bar, Bars, Block, Column, Table
from quantize.findings import Finding
from quantize.inspection import Inspection, Layer
from quantize.inspection.saturation import Risk
from quantize.inspection.side_by_side import LayerNoise

_NAMES = 4
_BARS = 12


def file_table(found: Inspection) -> Table:
    """What the file is."""
    model = found.model
    integers = [x for x in found.layers if x.mode in ("static", "dynamic", "weight-only")]
    others = ", ".join(f"{d} {v}" for d, v in found.domains.items() if d != "ai.onnx")
    rows = [
        ("opset", f"{model.opset}" + (f"; {others}" if others else "")),
        ("size", f"{model.size_bytes / 1e6:.2f} MB, {found.parameters:,} parameters"),
        ("takes", ", ".join(map(str, model.inputs))),
        ("returns", ", ".join(map(str, model.outputs))),
        (
            "products",
            ", ".join(
                f"{n} {m}"
                for m in ("static", "dynamic", "weight-only", "float")
                if (n := found.count(m))
            )
            or "none of a kind that INT8 helps",
        ),
    ]
    if bare := sum(not x.weight_count for x in found.layers):
        rows.append(("of them, no layers", f"{bare} without constant weights, as in attention"))
    if integers:
        rows += [
            ("activations", _tally(x.activation for x in integers if x.activation)),
            ("weights", _tally(_weights_of(x) for x in integers if x.weights)),
            ("written as", _forms(found)),
        ]
    if found.tables:
        rows.append(("tables", f"{found.tables} embedding tables in 8 bits"))
    return Table("File", (Column("What"), Column("Found")), tuple(rows))


def _weights_of(layer: Layer) -> str:
    grain = {None: "scale elsewhere", True: "per channel", False: "per tensor"}[layer.per_channel]
    return f"{layer.weights} {'symmetric' if layer.symmetric else 'asymmetric'} {grain}"


def _forms(found: Inspection) -> str:
    return ", ".join(f"{n} {op}" for op, n in found.forms.items() if op != "DequantizeLinear")


def kernel_table(found: Inspection) -> Table:
    """What each runtime really runs, counted and timed."""

    def row(name: str, values: Iterable[str]) -> tuple[str, ...]:
        return (name, *values)

    all_ = found.kernels
    rows = [
        row("multiplying kernels", (str(len(k.products)) for k in all_)),
        row("… of them in INT8", (str(k.integer_products) for k in all_)),
        row("other kernels in INT8", (str(_others(k)) for k in all_)),
        row("conversions", (str(k.conversions) for k in all_)),
        row("… that only round", (str(k.lone_pairs) for k in all_)),
        row("float islands", (str(len(k.islands)) for k in all_)),
    ]
    if any(k.runs for k in all_):
        rows += [
            row("time in all kernels", (_with_ms(k.total_ms) for k in all_)),
            row("… in INT8", (_share(k, lambda x: _kind(x) == "INT8") for k in all_)),
            row("… in conversions", (_share(k, lambda x: x.kind == "conversion") for k in all_)),
            row("… in float islands", (_island_share(k) for k in all_)),
        ]
    columns = (Column("What"), *(Column(f"{k.runtime} {k.version}", "right") for k in all_))
    note = "Read from ONNX Runtime's optimized graph and OpenVINO's runtime model."
    return Table("Kernels", columns, tuple(rows), note)


def _others(k: Kernels) -> int:
    return sum(x.integer and x.kind == "other" for x in k.kernels)


def saturation_table(layers: Sequence[Layer], found: Inspection) -> Table:
    """Layers that can saturate."""
    observed = any(x.observed is not None for x in layers)
    columns = [
        Column("Layer"),
        Column("Channels", "right"),
        Column("Pair sum", "right"),
        Column("At worst", "right"),
        Column("Of range", "right"),
    ]
    if observed:
        columns += [Column("Wrong on samples", "right"), Column("By up to", "right")]
    rows = []
    for x in layers:
        assert x.risk is not None
        row = [x.name, *_risk_cells(x.risk)]
        if observed:
            seen = x.observed
            row += (
                ["–", "–"]
                if seen is None
                else [f"{seen.wrong / seen.looked_at:.2%}", f"{seen.worst_share:.1%}"]
            )
        rows.append(tuple(row))
    shown = "" if len(layers) == len(found.risky) else f"The worst of {len(found.risky)}. "
    note = (
        f"{shown}Channels: with two neighbouring weights whose sum is over 128, so that a pair of "
        "products can leave 16 bits. At worst: units of the 32-bit accumulator, all pairs at once; "
        "of range: as a share of what the output can hold."
    )
    if observed:
        note += " On samples: a part of the outputs of those channels, computed both ways."
    return Table("Layers that can saturate", tuple(columns), tuple(rows), note)


def _risk_cells(risk: Risk) -> list[str]:
    share = "–" if risk.worst_share is None else f"{risk.worst_share:.0%}"
    return [f"{risk.channels} of {risk.of}", str(risk.pair_sum), f"{risk.worst_codes:,}", share]


def flag_table(found: Inspection) -> Table:
    """Red flags, the worst first."""
    rows = tuple((f.title, str(len(f.where)), some_names(f.where), f.text) for f in found.flags)
    columns = (Column("Flag"), Column("Places", "right"), Column("Where"), Column("What to do"))
    return Table("Red flags", columns, rows)


def cause_table(found: Inspection) -> Table | None:
    """Why products are in float, or what could be done with them; None where none is."""
    causes: dict[str, list[str]] = {}
    for x in found.layers:
        if x.cause:
            causes.setdefault(x.cause, []).append(x.name)
    if not causes:
        return None
    rows = tuple((why, str(len(names)), some_names(names)) for why, names in causes.items())
    title = "Products in float" if found.quantized else "Products and what INT8 could do"
    return Table(title, (Column("Why"), Column("Count", "right"), Column("Which")), rows)


def finding_table(findings: Sequence[Finding], found: Inspection) -> Table:
    """What makes layers hard for 8 bits."""
    rows = tuple((f.layer, f.cause, f.done) for f in findings)
    more = len(found.findings) - len(rows)
    note = f"The first of {len(found.findings)}." if more else ""
    return Table("Causes", (Column("Where"), Column("Cause"), Column("Done")), rows, note)


def noise_table(layers: Sequence[LayerNoise], found: Inspection) -> Table:
    """Noise of some layers against FP32."""
    shown = "" if len(layers) == len(found.noise) else f"The noisiest of {len(found.noise)}. "
    note = (
        f"{shown}Signal over noise at the end of the layer, more is better. Made here: the layer "
        "in INT8, fed by FP32. Accumulated: the same tensor in the INT8 model. What a layer makes "
        "need not reach the outputs: the search ranks layers by what each does there."
    )
    columns = (
        Column("Layer"),
        Column("Made here, dB", "right"),
        Column("Accumulated, dB", "right"),
    )
    rows = tuple((x.layer, _decibels(x.local), _decibels(x.accumulated)) for x in layers)
    return Table("Noise against FP32", columns, rows, note)


def _decibels(share: float) -> str:
    return f"{-10 * math.log10(share):.1f}" if share > 0 else "none"


def time_blocks(k: Kernels) -> Iterator[Block]:
    """Time by operator, and the slowest kernels; nothing where nothing was timed."""
    total = k.total_ms
    if not k.runs or not total:
        return
    spent: dict[str, list[float]] = {}
    for x in k.kernels:
        if x.ms is not None:
            spent.setdefault(f"{x.op}, {_kind(x)}", []).append(x.ms)
    ordered = sorted(spent.items(), key=lambda item: -sum(item[1]))
    yield Table(
        f"Operators in {k.runtime}",
        (
            Column("Operator"),
            Column("Kernels", "right"),
            Column("ms", "right"),
            Column("Share", "right"),
        ),
        tuple((n, str(len(t)), in_ms(sum(t)), f"{sum(t) / total:.1%}") for n, t in ordered),
        f"Means of {k.runs} inferences with the profiler on; times of single kernels add up to "
        "more than an inference takes without it.",
    )
    slowest = sorted((x for x in k.kernels if x.ms), key=lambda x: -(x.ms or 0))[:_BARS]
    yield Bars(
        f"Slowest kernels in {k.runtime}",
        "Longer takes more time; those in float are the ones that INT8 has not reached.",
        "ms",
        tuple(
            Bar(
                f"{x.name} ({_kind(x)})",
                x.ms or 0.0,
                tone="candidate" if _kind(x) == "INT8" else "plain",
            )
            for x in slowest
        ),
    )


def _kind(kernel: Kernel) -> str:
    if kernel.kind == "conversion":
        return "conversion"
    return "INT8" if kernel.integer else "float"


def layer_table(found: Inspection) -> Table:
    """Every layer with its kernels and cause."""
    runtimes = [k.runtime for k in found.kernels]
    rows = tuple(
        (
            x.name,
            x.op,
            x.mode,
            " × ".join(p for p in (x.activation, x.weights) if p) or "float",
            *(_cell(x.kernels.get(r)) for r in runtimes),
            x.cause,
        )
        for x in found.layers
    )
    columns = (
        Column("Layer"),
        Column("Operator"),
        Column("Mode"),
        Column("Types"),
        *(Column(r) for r in runtimes),
        Column("Cause"),
    )
    note = (
        "Under a runtime: the kernel that runs it, whether in INT8, and its ms. Not told: the "
        "runtime merged it into a kernel of another name."
    )
    return Table("Layers", columns, rows, note)


def _cell(kernel: Kernel | None) -> str:
    if kernel is None:
        return "not told"
    time = "" if kernel.ms is None else f", {in_ms(kernel.ms)}"
    return f"{code_of(kernel)}{time}"


def code_of(kernel: Kernel) -> str:
    """A kernel in words."""
    return f"{kernel.primitive or kernel.op} ({_kind(kernel)})"


def _share(k: Kernels, wanted: object) -> str:
    assert callable(wanted)
    times = [x.ms for x in k.kernels if wanted(x) and x.ms is not None]
    return _part(sum(times), k.total_ms)


def _island_share(k: Kernels) -> str:
    return _part(sum(i.ms or 0.0 for i in k.islands), k.total_ms)


def _part(part: float, whole: float | None) -> str:
    return "–" if not whole else f"{part / whole:.1%}"


def _with_ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms"


def in_ms(value: float | None) -> str:
    """A time, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def layers_of(count: int) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} layer{'' if count == 1 else 's'}"


def counted(texts: Iterable[str]) -> dict[str, int]:
    """How often each text occurs, in order of appearance."""
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return counts


def _tally(texts: Iterable[str]) -> str:
    return ", ".join(f"{n} {text}" for text, n in counted(texts).items())


def some_names(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
