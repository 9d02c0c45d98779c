"""Hostile archives are a plain one with one thing changed; the canary is a file that is touched."""

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError, VnnifyError
from bench.torch_archive import is_arithmetic, private_copy, refuse_unsafe
from quantize.sources import ModelSpec, describe_inputs
from quantize.sources.torch_program import open_program

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"

Members = dict[str, bytes]


class _Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.fc = torch.nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, image: Any, mask: Any, *, options: dict[str, Any]) -> dict[str, Any]:
        y = self.conv(image).relu()
        torch._check(y.shape[2] != 77)
        small = torch.nn.functional.interpolate(y, scale_factor=0.5)
        with torch.no_grad():
            y = y * options["by"]
        y = torch.cat([y, y])[: image.shape[0]].mean((2, 3)) * self.scale
        return {
            "y": torch.where(mask[:, None], self.fc(y), y),
            "rest": (small, image.shape[2] // 2),
        }


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _export(path: Path, *, dynamic: bool) -> None:
    arguments = (torch.zeros(3, 1, 8, 8), torch.ones(3, dtype=torch.bool))
    free = torch.export.Dim.DYNAMIC
    shapes = {"image": {0: free, 2: free}, "mask": {0: free}, "options": {"by": None}}
    program = torch.export.export(
        _Net().eval(),
        arguments,
        {"options": {"by": torch.ones(1)}},
        dynamic_shapes=shapes if dynamic else None,
    )
    torch.export.save(program, path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.pt2"
    _export(path, dynamic=True)
    return path


def _rewrite(plain: Path, out: Path, change: Callable[[Members], None], **options: Any) -> Path:
    with zipfile.ZipFile(plain) as archive:
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"plain/{name}" if not name.startswith("/") else name[1:], content)
    return out


def _edit(name: str, change: Callable[[Any], None]) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        document = json.loads(members[name])
        change(document)
        members[name] = json.dumps(document).encode()

    return edit


def _code(canary: Path) -> str:
    return f"__import__('pathlib').Path('{canary}').touch()"


def _torch_save(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _first_expression(document: Any) -> dict[str, Any]:
    values = document["graph_module"]["graph"]["tensor_values"].values()
    sizes = (size for meta in values for size in meta["sizes"])
    return next(s["as_expr"] for s in sizes if "as_expr" in s)


def _pickled_weight(canary: Path) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members["data/weights/weight_0"] = _torch_save(_Touch(canary))
        _edit(WEIGHTS, lambda d: d["config"]["conv.weight"].update(use_pickle=True))(members)

    return change


def _object(kind: str) -> Callable[[Path], Callable[[Members], None]]:
    def change(canary: Path) -> Callable[[Members], None]:
        def edit(members: Members) -> None:
            members[f"data/constants/{kind}_0"] = pickle.dumps(_Touch(canary))
            meta = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True}
            _edit(CONSTANTS, lambda d: d["config"].update(c=meta | {"tensor_meta": None}))(members)

        return edit

    return change


def _samples(canary: Path) -> Callable[[Members], None]:
    return lambda members: members.update({SAMPLES: _torch_save(((_Touch(canary),), {}))})


def _expression(canary: Path) -> Callable[[Members], None]:
    return _edit(MODEL, lambda d: _first_expression(d).update(expr_str=_code(canary)))


def _guard(canary: Path) -> Callable[[Members], None]:
    return _edit(MODEL, lambda d: d["guards_code"].append(_code(canary)))


def _name(canary: Path) -> Callable[[Members], None]:
    def change(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"][1] = f"mask={_code(canary)}"

    return _edit(MODEL, change)


def _default_factory(canary: Path) -> Callable[[Members], None]:
    context = {
        "default_factory_module": "antigravity",
        "default_factory_name": "geohash",
        "dict_context": [],
    }
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}

    def change(document: Any) -> None:
        entry = document["graph_module"]["module_call_graph"][0]
        entry["signature"]["out_spec"] = json.dumps([1, tree])

    return _edit(MODEL, change)


def _enum(canary: Path) -> Callable[[Members], None]:
    context = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "x"}])
    tree = {"type": "builtins.dict", "context": context, "children_spec": []}

    def change(document: Any) -> None:
        entry = document["graph_module"]["module_call_graph"][0]
        entry["signature"]["in_spec"] = json.dumps([1, tree])

    return _edit(MODEL, change)


def _operator(name: str) -> Callable[[Path], Callable[[Members], None]]:
    return lambda canary: _edit(
        MODEL, lambda d: d["graph_module"]["graph"]["nodes"][0].update(target=name)
    )


def _member(name: str, content: bytes = b"") -> Callable[[Path], Callable[[Members], None]]:
    return lambda canary: lambda members: members.update({name: content})


ARMED = {
    "a pickled weight": (_pickled_weight, "is pickled"),
    "an opaque object": (_object("opaque_obj"), "holds 'data/constants/opaque_obj_0'"),
    "hostile sample inputs": (_samples, "more than tensors"),
    "a hostile size": (_expression, "expr_str"),
    "a hostile guard": (_guard, "guards_code"),
}
REFUSED = {
    **ARMED,
    "a hostile name": (_name, "name"),
    "a custom object": (_object("custom_obj"), "holds 'data/constants/custom_obj_0'"),
    "a container's default": (_default_factory, "out_spec"),
    "an enum": (_enum, "in_spec"),
    "an operator of Python": (_operator("torch.os.system"), "target"),
    "an operator that reads files": (_operator("torch.ops.aten.from_file.default"), "target"),
    "a loader of libraries": (_operator("torch.ops.load_library"), "target"),
    "an attribute of an operator": (_operator("torch.ops.aten.add.__class__"), "target"),
    "a library": (_member("data/aotinductor/model/model.so"), "aotinductor"),
    "pickled weights of old": (_member("data/weights/model.pt"), "data/weights/model.pt"),
    "the old format": (_member("/serialized_constants.pt"), "outside one folder"),
    "a second reading": (_member("Models/model.json"), "two files of one name"),
}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_plain_program_passes_and_loads(tmp_path: Path, *, dynamic: bool) -> None:
    path = tmp_path / "plain.pt2"
    _export(path, dynamic=dynamic)
    refuse_unsafe(path, str(path))
    inputs = describe_inputs(ModelSpec(str(path))) or ()
    assert [i.name for i in inputs] == ["image", "mask", "options_by"]
    assert inputs[0].batch_is_free is dynamic


def test_sizes_that_follow_from_others_pass(tmp_path: Path) -> None:
    class Halves(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.reshape(x.shape[0], -1, 2)

    half = torch.export.Dim("half", min=4, max=50)
    program = torch.export.export(
        Halves(), (torch.zeros(3, 8),), dynamic_shapes={"x": {1: 2 * half}}
    )
    torch.export.save(program, tmp_path / "halves.pt2")
    assert describe_inputs(ModelSpec(str(tmp_path / "halves.pt2")))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_archive_is_refused_before_torch_opens_it(
    plain: Path, tmp_path: Path, kind: str
) -> None:
    make, message = REFUSED[kind]
    canary = tmp_path / "canary"
    path = _rewrite(plain, tmp_path / "hostile.pt2", make(canary))
    with pytest.raises(InputError, match=message) as caught:
        describe_inputs(ModelSpec(str(path)))
    assert "--trust-model" in str(caught.value)
    assert str(path) in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ARMED)
def test_the_same_archive_would_have_run_code(plain: Path, tmp_path: Path, kind: str) -> None:
    """Or else the test before this one proves nothing. It is what --trust-model allows."""
    canary = tmp_path / "canary"
    path = _rewrite(plain, tmp_path / "hostile.pt2", ARMED[kind][0](canary))
    # A guard that ran fails.
    with contextlib.suppress(VnnifyError, AssertionError):
        program = open_program(ModelSpec(str(path), trust=True))
        made = {"image": torch.zeros(3, 1, 8, 8), "mask": torch.ones(3, dtype=torch.bool)}
        made["options_by"] = torch.ones(1)
        program.call([made[s.name] for s in program.inputs])
    assert canary.exists()


def test_an_archive_that_only_was_packed_again_passes(plain: Path, tmp_path: Path) -> None:
    refuse_unsafe(_rewrite(plain, tmp_path / "copy.pt2", lambda _: None), "it")
    packed = _rewrite(
        plain, tmp_path / "packed.pt2", lambda _: None, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(InputError, match="is compressed"):
        refuse_unsafe(packed, "it")


def test_the_copy_does_not_change_with_its_original(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"checked")
    with private_copy(path) as copy:
        path.write_bytes(b"swapped")
        assert copy.read_bytes() == b"checked"
        assert copy.parent.stat().st_mode & 0o077 == 0
    assert not copy.exists()
    with pytest.raises(InputError, match="cannot be read"), private_copy(tmp_path / "none.pt2"):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 + s1//2 - 1",
        "Mul(Integer(2), Symbol('s31', positive=True, integer=True))",
        "TruncToInt(Mul(Float('0.5', precision=53), ToFloat(Symbol('s16', integer=True))))",
        "And(Ne(s0, 3), s1 <= 4)",
        "s0**2",
    ],
)
def test_arithmetic_is_harmless(text: str) -> None:
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "s0.__class__",
        "s0[0]",
        "Symbol('__import__(1)')",
        "Symbol(Symbol)('x')",
        "Max('s0', 1)",
        "Float('os.system()')",
        "Symbol('s0', positive=print(1))",
        "Lambda(s0, s0)",
        "eval('1')",
        "lambda: 1",
        "[s0 for s0 in (1,)]",
        "9**9999",
        "s0 if s1 else s2",
        "s0\n",
        "s0 # more",
        "f's0'",
        "(" * 500,
        "",
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert not is_arithmetic(text)
