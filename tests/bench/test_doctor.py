from dataclasses import replace

import pytest

from bench.doctor import diagnosis
from bench.machine import Machine, describe
from bench.peaks import Peaks
from bench.render import render
from bench.render.text import render_text


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


def test_measured_limits_are_part_of_the_machine(here: Machine) -> None:
    text = render(
        diagnosis(here, (Peaks(2, 1e12, 4e12, "openvino", "onnxruntime", 5e10, 2**28),)), "text"
    )
    assert "1,000 GFLOP/s FP32" in text
    assert "4,000 GOP/s INT8" in text


def test_everything_fits_a_screen_of_80_by_24(here: Machine) -> None:
    """A server's CPU with AMX and the packages of a whole install."""
    names = (
        "vnnify numpy onnx onnx-ir onnxruntime openvino nncf torch onnxscript neural-compressor "
        "pydantic protobuf"
    )
    flags = (
        "avx2 fma avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 amx_tile "
        "amx_int8 amx_bf16"
    )
    server = replace(
        here,
        cpu="Intel(R) Xeon(R) Platinum 8480+",
        flags=tuple(flags.split()),
        packages=dict.fromkeys(names.split(), "12.34.5"),
        variables={},
        governor="performance",
        quota_cpus=None,
    )
    peaks = Peaks(112, 8e12, 4e13, "onnxruntime", "onnxruntime", 5e11, 2**30)
    text = render_text(diagnosis(server, (peaks,)), 80)
    assert len(text.splitlines()) < 24  # One line is the next prompt's.
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"governor": "powersave"}, "sudo cpupower frequency-set -g performance"),
        ({"quota_cpus": 0.5}, "docker run --cpus"),
        ({"packages": {}}, "pip install 'vnnify[openvino]'"),
        ({"canaries": {"onnxruntime": "saturating"}}, "products saturate here in onnxruntime"),
        ({"gpus": ("H100",), "no_gpu_reason": "no CUDA"}, "The GPU cannot be used: no CUDA."),
    ],
)
def test_what_is_missing_comes_with_what_helps(
    here: Machine, changes: dict[str, object], says: str
) -> None:
    assert says in " ".join(render(diagnosis(replace(here, **changes)), "text").split())  # type: ignore[arg-type]


def test_a_machine_with_nothing_to_mend_says_so(here: Machine) -> None:
    fine = replace(
        here,
        governor="performance",
        quota_cpus=None,
        packages={"torch": "2", "openvino": "2026"},
        canaries={"onnxruntime": "exact"},
        gpus=(),
    )
    assert diagnosis(fine).verdict.lines == ("Nothing to mend.",)
