import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.errors import ResourceError
from quantize.proof import guest, inside, proving
from quantize.proof.comparing import Compared
from quantize.proof.guest import AVX2_CPU, VNNI_CPU, Answer, Job, Visit
from quantize.proof.proving import Case, integers_decide, operators, prove, prove_model
from quantize.targets import TARGETS
from tests import tiny
from tests.int8 import samples_of

Change = Callable[[Answer], Answer]


def weights(size: int = 8) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.full((size, 2), 127, np.int8)


def test_integers_decide_where_no_sum_of_floats_is_left(tmp_path: Path) -> None:
    found = operators(tiny.qdq_matmul(tmp_path / "m.onnx", weights()), tmp_path)
    assert "MatMul" not in found
    assert integers_decide(found)
    assert not integers_decide(operators(tiny.linear(tmp_path / "f.onnx"), tmp_path))


def test_what_a_branch_holds_counts(tmp_path: Path) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, op in (("a", "Relu"), ("b", "Softmax"))
    }
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branches["a"], else_branch=branches["b"]
    )
    inputs: list[Any] = [("c", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, ["n", 2])]
    path = tiny.save(tmp_path / "m.onnx", [node], inputs, [("y", TensorProto.FLOAT, None)])
    assert {"If", "Relu", "Softmax"} <= operators(path, tmp_path)


class FakeGuest:
    """Runs the guest's program in this process, with the arithmetic that the CPU would have."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.change, self.jobs = folder, lambda a: a, list[Job]()
        self.cpus: list[str] = []

    def __call__(self, cpu: str, job: Job, **_: Any) -> Visit:
        self.jobs.append(job)
        self.cpus.append(cpu)
        for entry in guest._job_entries(job, self.folder):
            file = self.folder / str(len(self.jobs)) / entry.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(entry.data)
        out = io.BytesIO()
        # Exact whatever this CPU does, under the name that the job has for it.
        inside.run(file.parents[1], out, ["exact"])
        seen = guest.parse(out.getvalue().decode().splitlines())
        outputs = {(c, m): o for (c, _), o in seen.outputs.items() for m in job.modes}
        errors = {(c, m): o for (c, _), o in seen.errors.items() for m in job.modes}
        answer = self.change(replace(seen, outputs=outputs, errors=errors))
        return Visit(cpu, answer, False, 5, 1.0, 2.0, 3.0)  # noqa: FBT003 - a record's fields


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    made = FakeGuest(tmp_path)
    monkeypatch.setattr(proving, "visit", made)
    return made


@pytest.fixture
def case(tmp_path: Path) -> Case:
    model = tiny.qdq_matmul(tmp_path / "m.onnx", weights())
    return Case("m", model, tuple({"x": np.full((1, 8), v, np.float32)} for v in (255, 254, 253)))


def test_a_model_that_gives_the_same_bits_is_proved(
    fake: FakeGuest, case: Case, tmp_path: Path
) -> None:
    (proof,) = prove([case], cache=tmp_path)
    assert proof.holds
    assert proof.canary == "exact"
    assert (proof.image_bytes, proof.boot_seconds, proof.run_seconds) == (5, 2.0, 3.0)
    assert proof.text == ("proved on emulated AVX512-VNNI, 3 samples, 0 of 6 values differ")


def test_one_bit_is_enough_to_refute(fake: FakeGuest, case: Case, tmp_path: Path) -> None:
    def flip(answer: Answer) -> Answer:
        outputs = dict(answer.outputs)
        first, *rest = outputs["m", "native"]
        changed = first["y"].copy()
        changed[0, 0] = np.nextafter(changed[0, 0], np.float32(0))
        return replace(answer, outputs={**outputs, ("m", "native"): ({"y": changed}, *rest)})

    fake.change = flip
    (proof,) = prove([case], cache=tmp_path)
    assert not proof.holds
    assert proof.text.startswith("not proved on emulated AVX512-VNNI, 3 samples, 1 of 6 values")


def test_a_guest_without_vnni_proves_nothing(fake: FakeGuest, case: Case, tmp_path: Path) -> None:
    def saturate(answer: Answer) -> Answer:
        wrong = ({"y": np.zeros((16, 32), np.int32)},)
        return replace(answer, outputs={**answer.outputs, ("canary", "native"): wrong})

    fake.change = saturate
    (proof,) = prove([case], cache=tmp_path)
    assert proof.canary == "other"
    assert not proof.holds


def test_a_model_that_does_not_run_there_is_not_proved(
    fake: FakeGuest, case: Case, tmp_path: Path
) -> None:
    fake.change = lambda a: replace(
        a,
        outputs={k: v for k, v in a.outputs.items() if k[0] == "canary"},
        errors={("m", "native"): "Fail: memory"},
    )
    (proof,) = prove([case], cache=tmp_path)
    assert not proof.holds
    assert proof.compared == (Compared("m", 0, 0, 0, 0.0, True, "Fail: memory"),)  # noqa: FBT003


def test_modes_are_told_apart(fake: FakeGuest, case: Case, tmp_path: Path) -> None:
    native, exact = prove([case], cache=tmp_path, cpu=AVX2_CPU, modes=("native", "exact"))
    assert (native.mode, exact.mode) == ("native", "exact")
    assert exact.holds
    # An AVX2 CPU that does not saturate is not one.
    assert not native.holds


def test_samples_that_ran_out_of_time_are_left_out(
    fake: FakeGuest, case: Case, tmp_path: Path
) -> None:
    fake.change = lambda a: replace(a, outputs={k: o[:2] for k, o in a.outputs.items()})
    samples = samples_of(case.feeds, [])
    (proof,) = prove_model(case.model, samples, {}, TARGETS["vnni"], cache=tmp_path)
    assert proof.holds
    assert proof.compared[0].samples == 2
    (whole,) = prove([case], cache=tmp_path)
    assert not whole.holds


@pytest.mark.parametrize(("target", "cpus"), [("vnni", 1), ("amx", 1), ("portable", 2)])
def test_what_is_for_every_cpu_is_proved_on_both(
    fake: FakeGuest, case: Case, tmp_path: Path, target: str, cpus: int
) -> None:
    proofs = prove_model(
        case.model, samples_of(case.feeds, []), {}, TARGETS[target], cache=tmp_path
    )
    assert [p.cpu for p in proofs] == [VNNI_CPU, AVX2_CPU][:cpus]
    assert fake.cpus == [p.cpu for p in proofs]


def test_a_machine_that_fails_is_reported_and_loses_nothing(
    fake: FakeGuest, case: Case, tmp_path: Path
) -> None:
    def fail(_: Answer) -> Answer:
        raise ResourceError("the emulated machine ended by itself.")

    fake.change = fail
    samples = samples_of(case.feeds, [])
    (proof,) = prove_model(case.model, samples, {}, TARGETS["vnni"], cache=tmp_path)
    assert not proof.holds
    assert not proof.refutes
    assert "did not run: the emulated machine ended by itself." in proof.text


def test_carried_states_are_given_to_each_run(fake: FakeGuest, tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, ["n"])
    samples = samples_of([{"x": np.array([v], np.float32)} for v in (1, 5, 9)], [])
    (proof,) = prove_model(path, samples, {"y": "x"}, TARGETS["vnni"], cache=tmp_path)
    assert proof.holds
    assert [f["x"].tolist() for f in fake.jobs[0].feeds["model"]] == [[1], [-1], [1]]
