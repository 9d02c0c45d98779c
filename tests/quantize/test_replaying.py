"""What a replay says of its verdict; the replay as a whole stands in test_pipeline.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import UnsupportedError, UsageError
from bench.runtimes import Settings
from quantize import replaying
from quantize.evaluate import Execution
from quantize.job import Effort
from quantize.looks import Look
from quantize.replaying import early_note, refuse_options, run_recipe
from tests.fakes import FakeClock, FakeRuntime, FakeSession


@pytest.mark.parametrize(
    ("done", "said"), [(500, "judged by 500 of 1,000 samples"), (1000, None), (None, None)]
)
def test_only_a_verdict_on_a_part_of_the_samples_says_so(
    done: int | None, said: str | None
) -> None:
    verdict: Any = SimpleNamespace(look=None if done is None else Look(done, (500, 1000), 0.025))
    note = early_note(verdict)
    assert note is None if said is None else str(note).startswith(said)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, None),
        ({"target": "vnni"}, None),
        ({"engines": ("native", "inc")}, None),
        ({"target": "portable"}, "--target portable: r.toml says vnni"),
        ({"engines": ("nncf",)}, "--engine nncf: r.toml says inc"),
        ({"engines": ("native", "nncf")}, "--engine native,nncf: r.toml says inc"),
    ],
)
def test_what_contradicts_a_recipe_is_refused(options: dict[str, Any], refused: str | None) -> None:
    made = SimpleNamespace(target="vnni", engine="inc")
    file: Any = SimpleNamespace(recipe=made, where="r.toml")
    if refused is None:
        refuse_options(file, Effort(**options))
        return
    with pytest.raises(UsageError, match=f"^{refused}.* or search without --recipe"):
        refuse_options(file, Effort(**options))


@pytest.mark.parametrize("sound", [("openvino", "onnxruntime"), ("onnxruntime",), ()])
def test_the_model_is_judged_where_it_is_sound_first_where_the_recipe_was_served(
    sound: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleNamespace(path=Path("m.onnx"), sha256="a" * 64)
    trial: Any = SimpleNamespace(quantized=SimpleNamespace(model=model), noise_db=30.0)
    sessions: dict[str, FakeSession] = {}
    judged: list[str] = []

    class Judge:
        def execution(self, quantized: Any, runtime: str) -> Execution:
            sessions[runtime] = FakeSession(FakeClock(), [1])
            return Execution(FakeRuntime(sessions[runtime]), Settings(threads=2))

        def __call__(self, quantized: Any, runtime: str, *, opened: Any) -> Any:
            # It is what is being opened for it.
            assert opened.result() is sessions[runtime]
            assert not sessions[runtime].closed
            judged.append(runtime)
            return ("evaluation", "verdict")

    monkeypatch.setattr(replaying, "attempt", lambda *_: trial)
    monkeypatch.setattr(replaying, "may_serve", lambda *_: True)
    monkeypatch.setattr(replaying, "serves", lambda runtime, *_: runtime in sound)
    file = SimpleNamespace(served_by="openvino", where="recipe.toml")
    replay: Any = SimpleNamespace(file=file, recipe=None)
    bench: Any = SimpleNamespace(runtimes=("onnxruntime", "openvino"))
    judge: Any = Judge()
    if sound:
        found = run_recipe(replay, bench, judge)
        assert judged == [sound[0]]
        assert found.best is not None
        assert found.best.runtime == sound[0]
    else:
        with pytest.raises(UnsupportedError, match="opens in none of onnxruntime, openvino"):
            run_recipe(replay, bench, judge)
        assert not judged
    assert all(s.closed for s in sessions.values())
    tried = ["openvino", "onnxruntime"] if sound[:1] != ("openvino",) else ["openvino"]
    assert list(sessions) == tried
