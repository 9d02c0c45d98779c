"""An inspection as a document: one screen for a terminal, everything for the other formats."""

from collections.abc import Iterator

from bench.render import (
    Banner,
    Block,
    Column,
    Document,
    KeyFigure,
    Paragraph,
    Section,
    Table,
)
from quantize.coverage import Coverage, covered
from quantize.inspection import Inspection, Layer
from quantize.inspection.tables import (
    cause_table,
    code_of,
    counted,
    file_table,
    finding_table,
    flag_table,
    in_ms,
    kernel_table,
    layer_table,
    layers_of,
    noise_table,
    saturation_table,
    some_names,
    time_blocks,
)

_ROWS_ON_SCREEN = 5


def inspection_document(found: Inspection) -> Document:
    """Everything, for a report."""
    sections = [
        Section("What it is", (file_table(found),)),
        Section("Kernels that really run", tuple(_kernel_blocks(found))),
        Section("On CPUs without VNNI", tuple(_saturation_blocks(found, len(found.layers)))),
    ]
    if found.flags:
        sections.insert(1, Section("Red flags", (flag_table(found),)))
    if found.findings:
        sections.append(Section("Hard for 8 bits", (finding_table(found.findings, found),)))
    times = tuple(b for k in found.kernels for b in time_blocks(k))
    if times:
        sections.append(Section("Where the time goes", times))
    sections += noise_sections(found)
    if found.layers:
        sections.append(Section("Every layer", (layer_table(found),)))
    return Document(
        title=f"Inside {found.model.path}",
        verdict=_banner(found, ()),
        sections=tuple(sections),
        footer=(found.command, f"SHA-256 {found.model.sha256}"),
    )


def inspection_summary(found: Inspection) -> Document:
    """One screen."""
    blocks: list[Section] = [Section("What it is", (file_table(found),))]
    if found.kernels:
        blocks.append(Section("Kernels that really run", (kernel_table(found),)))
    risky = found.risky[:_ROWS_ON_SCREEN]
    if risky:
        blocks.append(Section("On CPUs without VNNI", (saturation_table(risky, found),)))
    if hard := found.findings[:_ROWS_ON_SCREEN]:
        blocks.append(Section("Hard for 8 bits", (finding_table(hard, found),)))
    noisiest = sorted(found.noise, key=lambda x: -x.local)[:_ROWS_ON_SCREEN]
    if noisiest:
        blocks.append(Section("Where noise is made", (noise_table(noisiest, found),)))
    floats = cause_table(found)
    if floats is not None:
        blocks.append(Section("In float", (floats,)))
    pointer = ("--html FILE writes a report with every layer, kernel and time.",)
    return Document(
        title=f"Inside {found.model.path}",
        verdict=_banner(found, (*_flag_lines(found), *pointer)),
        sections=tuple(blocks),
    )


def noise_sections(found: Inspection) -> tuple[Section, ...]:
    """Noise of every layer, in a section of its own; none where it was not looked for."""
    if not found.noise:
        return ()
    return (Section("Where noise is made", (noise_table(found.noise, found),)),)


def kernel_section(found: Inspection) -> Section:
    """Kernels, saturation and red flags in one section, for the report of the run that made it."""
    blocks = [Paragraph(line) for line in _kernel_lines(found)]
    blocks += [Paragraph(line, "warning") for line in _flag_lines(found)]
    return Section(
        "Kernels that really run", (*blocks, *_kernel_blocks(found), *_saturation_blocks(found, 10))
    )


def _banner(found: Inspection, more: tuple[str, ...]) -> Banner:
    lines = [*_kernel_lines(found), *_saturation_lines(found)]
    lines += [f"Note: {n}" for n in found.notes]
    return Banner("info", _headline(found), (*lines, *more), tuple(_figures(found)))


def _headline(found: Inspection) -> str:
    layers = covered(found.layers)
    if not found.quantized:
        if not layers.layers:
            return "Holds no layer that INT8 could make faster."
        able = Coverage(sum(x.cause.startswith("can run") for x in found.layers), layers.layers)
        return f"FP32: {able} layers can run in INT8; vnnify quantize would try them."
    modes = counted(x.mode for x in found.layers if x.weight_count and x.mode != "float")
    told = ", ".join(f"{n} {mode}" for mode, n in modes.items())
    return f"INT8 in {layers} layers{f' ({told})' if told else ''}."


def _figures(found: Inspection) -> Iterator[KeyFigure]:
    if found.quantized:
        yield KeyFigure("Layers in INT8", str(covered(found.layers)), "in the file")
        for k in found.kernels:
            islands = f"{len(k.islands)} float island{'' if len(k.islands) == 1 else 's'}"
            yield KeyFigure(
                f"INT8 in {k.runtime}",
                f"{k.integer_products} of {len(k.products)}",
                f"kernels that multiply; {islands}",
            )
        yield KeyFigure(
            "Can saturate",
            layers_of(len(found.risky)),
            "on CPUs without VNNI, AVX-VNNI or AMX",
        )


def _kernel_lines(found: Inspection) -> Iterator[str]:
    for k in found.kernels:
        lost = found.in_float(k.runtime)
        if lost:
            yield (
                f"{k.runtime} runs {len(lost)} of the layers that are stored in INT8 in float: "
                f"{some_names([x.name for x in lost])}."
            )
    for name, reason in found.unread.items():
        yield f"Kernels of {name} are unknown: {reason}"


def _saturation_lines(found: Inspection) -> Iterator[str]:
    integers = [x for x in found.layers if x.mode in ("static", "dynamic")]
    if not integers:
        return
    if not found.risky:
        unknown = [x for x in integers if x.risk is None]
        if unknown:
            yield (
                f"On CPUs without VNNI {layers_of(len(unknown))} could saturate: both factors "
                "are activations, so the file cannot tell."
            )
        else:
            yield "On CPUs without VNNI it gives the same answers: no sum can leave 16 bits."
        return
    worst = found.risky[0]
    yield (
        f"On CPUs without VNNI {layers_of(len(found.risky))} can saturate, {worst.name} the most: "
        f"{_how_far(worst)}."
    )


def _how_far(layer: Layer) -> str:
    assert layer.risk is not None
    if layer.observed is not None:
        seen = layer.observed
        return (
            f"{seen.wrong / seen.looked_at:.2%} of its outputs came out wrong on samples, by up to "
            f"{seen.worst_share:.1%} of their span"
        )
    if layer.risk.worst_share is not None:
        return f"at worst by {layer.risk.worst_share:.0%} of its output's range"
    return f"at worst by {layer.risk.worst_codes:,} units of its accumulator"


def _flag_lines(found: Inspection) -> tuple[str, ...]:
    return tuple(f"{f.title}: {some_names(f.where)}. {f.text}" for f in found.flags)


def _kernel_blocks(found: Inspection) -> Iterator[Block]:
    if found.kernels:
        yield kernel_table(found)
    for k in found.kernels:
        lost = found.in_float(k.runtime)
        if lost:
            yield Table(
                f"Stored in INT8, run in float by {k.runtime}",
                (Column("Layer"), Column("Operator"), Column("Kernel"), Column("ms", "right")),
                tuple(
                    (x.name, x.op, code_of(x.kernels[k.runtime]), in_ms(x.kernels[k.runtime].ms))
                    for x in lost
                ),
                "The weights are turned back into floats: the file is smaller, not faster.",
            )
        if k.islands:
            yield Table(
                f"Float islands in {k.runtime}",
                (Column("Kernels"), Column("Count", "right"), Column("ms", "right")),
                tuple((some_names(i.kernels), str(len(i.kernels)), in_ms(i.ms)) for i in k.islands),
                "Float kernels with INT8 before and after them: they pay for two conversions.",
            )
    for name, reason in found.unread.items():
        yield Paragraph(f"{name}: {reason}", "warning")


def _saturation_blocks(found: Inspection, most: int) -> Iterator[Block]:
    for line in _saturation_lines(found):
        yield Paragraph(line, "warning" if found.risky else "plain")
    if found.risky:
        yield saturation_table(found.risky[:most], found)
    safe = [x for x in found.layers if x.risk is not None and x.risk.reason]
    if safe:
        reasons = counted(x.risk.reason for x in safe if x.risk is not None)
        rows = tuple((text, str(n)) for text, n in reasons.items())
        yield Table("Cannot saturate", (Column("Because"), Column("Layers", "right")), rows)
    if not any(x.risk is not None for x in found.layers):
        yield Paragraph("No layer multiplies integers with constant weights.")
