"""What a `.pt2` archive may hold so that torch opens it without running code of its author.

Read from torch 2.13's own loader; the ways from a file to running code are:

- payloads that the index marks as pickled, and custom or opaque objects (unpickled freely);
- sample inputs, which are unpickled freely where the restricted way fails;
- sizes, which go through `sympy.sympify` and so through `eval`;
- guards, names and tree structures, which become the source text of a Python module;
- operator names, looked up attribute by attribute from `torch`, `math` and `operator`;
- AOTInductor libraries, and the format before torch 2.8, which is pickled throughout.

So every text in the archive has to look like what `torch.export.save` writes of an ordinary module;
what is unknown is refused. Memory errors in torch's own operators are not looked for.
"""

import ast
import contextlib
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from bench.errors import InputError, ResourceError, describe_error

# Of one JSON file: a graph of a hundred thousand nodes has about 100 MB.
_MAX_JSON_BYTES = 512_000_000
_MEMBERS = re.compile(
    r"models/\w+\.json|data/(weights|constants)/\w+_config\.json|data/weights/weight_\d+|"
    r"data/constants/tensor_\d+|data/sample_inputs/\w+\.pt|archive_format|archive_version|version|"
    r"byteorder|\.data/\w+|extra/.*|\.format_version|\.storage_alignment"
)
_PAYLOAD = re.compile(r"weight_\d+|tensor_\d+")
# Nothing in these texts can end a string or a line of Python, or call anything.
_PLAIN = re.compile(r"[\w.\-+*:/@<= ]*")
_EXPRESSION = re.compile(r"[A-Za-z0-9_ .,'()+\-*/%<>=!&|~]*")
_SYMBOL = re.compile(r"[A-Za-z]\w*", re.ASCII)
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.(?!from_file\b|save\b)(?P<name>\w+)\.(?P<overload>\w+)|"
    r"torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|out_dtype|"
    r"invoke_subgraph|wrap_with_set_grad_enabled|wrap_with_autocast)|"
    r"torch\._?sym_[a-z]\w*|math\.[a-z]\w*|"
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|"
    r"rshift|getitem|not_|abs)",
    re.ASCII,
)
# A size of an input in a guard: L['x'].size()[0].
_SOURCE = re.compile(
    r"L(\['\w+'\]|\[\d+\])+(\.(size|stride)\(\)\[\d+\]|\.(storage_offset|dim)\(\))?"
)
_PYTHON_MATH = re.compile(
    r"\b(torch\.sym_|math\.)(?=(max|min|not|ite|float|int|sqrt|floor|ceil|trunc)\()"
)
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|"
    r"Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|floor|ceiling|"
    r"FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|"
    r"TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|max|min|abs|not|ite|float|int|sqrt|ceil|trunc"
)
_KEYWORDS = ("positive", "integer", "nonnegative", "real", "precision")
_MAX_EXPONENT = 64
_ARITHMETIC = (
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Load,
)
_TREES = (
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "collections.deque",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
    "torch.Size",
)
_ADVICE = (
    "If you trust who made it, add --trust-model; else save it again with torch.export.save of "
    "torch 2.10 or later, or give file.py:factory --weights weights.safetensors."
)


class _RefusedError(Exception):
    """What was found."""


@contextlib.contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """A copy that nobody else can change between its check and its use; removed afterwards.

    Raises:
        InputError: The file cannot be read.
        ResourceError: There is no room for the copy.
    """
    with tempfile.TemporaryDirectory(prefix="vnnify-pt2-") as folder:
        copy = Path(folder) / "model.pt2"
        try:
            source = path.open("rb")
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}.") from e
        with source:
            try:
                with copy.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except OSError as e:
                raise ResourceError(
                    f"{path}: cannot be copied to {folder}: {e.strerror}. Free some space there."
                ) from e
        yield copy


def refuse_unsafe(path: Path, name: str) -> None:
    """Refuse an archive that could run code when torch opens it.

    Args:
        path: The archive; nobody may change it until torch has opened it.
        name: How messages call it.

    Raises:
        InputError: It is damaged, or holds something that is not plainly data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
        _check_contents(path, members)
    except _RefusedError as e:
        raise InputError(f"{name}: {e}, so opening it could run code. {_ADVICE}") from e
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as e:
        raise InputError(
            f"{name}: torch cannot load it: no complete .pt2 archive: {describe_error(e)}. "
            "Save it again with torch.export.save."
        ) from e


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Names without the archive's own folder; two readers cannot understand them differently."""
    found = archive.infolist()
    roots = {i.filename.partition("/")[0] for i in found}
    if len(roots) != 1 or not found:
        raise _RefusedError("it holds files outside one folder, as torch before 2.8 wrote")
    names = [i.filename.partition("/")[2] for i in found]
    # torch looks names up without regard to case.
    if len({n.lower() for n in names}) < len(names):
        raise _RefusedError("it holds two files of one name")
    for name, info in zip(names, found, strict=True):
        if not _MEMBERS.fullmatch(name):
            raise _RefusedError(f"it holds {name[:80]!r}, which no plain exported program has")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _RefusedError(f"{name[:80]!r} is compressed, which torch never does")
        if name.endswith(".json") and info.file_size > _MAX_JSON_BYTES:
            raise _RefusedError(f"{name[:80]!r} has {info.file_size:,} bytes")
    return names


def _check_contents(path: Path, members: list[str]) -> None:
    """Check every file that torch interprets, as torch's own reader returns it."""
    from torch.export.pt2_archive import PT2ArchiveReader

    reader = PT2ArchiveReader(str(path))
    if sorted(reader.get_file_names()) != sorted(members):
        raise _RefusedError("its table of contents can be read in two ways")
    for name in members:
        if name.endswith("_config.json"):
            _check_payloads(json.loads(reader.read_bytes(name)), name)
        elif name.endswith(".json"):
            _Texts(name).check(json.loads(reader.read_bytes(name)))
        elif name.endswith(".pt"):
            _check_samples(reader.read_bytes(name), name)


def _check_payloads(index: Any, name: str) -> None:
    for key, meta in index["config"].items():
        if meta["use_pickle"] is not False:
            raise _RefusedError(f"{name} says that {key[:80]!r} is pickled")
        if not _PAYLOAD.fullmatch(meta["path_name"]):
            raise _RefusedError(f"{name}: {key[:80]!r} is the object {meta['path_name'][:80]!r}")
    _Texts(name).check(index)


def _check_samples(content: bytes, name: str) -> None:
    import torch

    if not content:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as e:  # torch retries without the restriction whatever was raised
        found = re.search(r"GLOBAL ([\w.]+)", str(e))
        what = found[1] if found else describe_error(e)[:120]
        raise _RefusedError(f"{name} holds more than tensors ({what})") from e


class _Texts:
    """Walks a JSON document; the key that holds a text says what kind of text it is."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.kinds: dict[str, Callable[[str], bool]] = {
            "target": _is_operator,
            "as_operator": _is_operator,
            "expr_str": is_arithmetic,
            "guards_code": _is_guard,
            "in_spec": _is_tree,
            "out_spec": _is_tree,
            "name": _is_name,
            "as_name": _is_name,
            "forward_arg_names": _is_name,
            "as_string": _is_string,
            "as_strings": _is_string,
        }

    def check(self, value: Any, key: str = "") -> None:
        """Refuse the first text that is not what its key asks for."""
        if isinstance(value, dict):
            # Of a node: where it came from. It is never interpreted.
            if key == "metadata" and all(isinstance(v, str) for v in value.values()):
                return
            for inner, item in value.items():
                if not _PLAIN.fullmatch(inner):
                    raise _RefusedError(f"{self.where}: {inner[:80]!r} is no name")
                if inner in ("as_custom_obj", "custom_obj"):
                    raise _RefusedError(f"{self.where} holds a custom object")
                self.check(item, inner)
        elif isinstance(value, list):
            for item in value:
                self.check(item, key)
        elif isinstance(value, str) and not self.kinds.get(key, _is_plain)(value):
            raise _RefusedError(f"{self.where}: {key} {value[:120]!r} is not plain data")


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None


def _is_string(text: str) -> bool:
    # An argument like "bilinear", or the message of an assertion; torch writes its repr.
    return text.isprintable()


def _is_name(text: str) -> bool:
    return text == "" or text.isidentifier()


def _is_operator(text: str) -> bool:
    """An operator of torch itself that touches nothing but tensors."""
    found = _OPERATOR.fullmatch(text)
    if found is None or found["name"] is None:
        return found is not None
    import torch
    from torch._ops import OpOverload

    if found[1] == "quantized_decomposed":
        register_quantized()
    packet = getattr(getattr(torch.ops, found[1]), found["name"], None)
    return isinstance(getattr(packet, found["overload"], None), OpOverload)


def register_quantized() -> None:
    """Make torch know the operators of quantized programs; it loads them on demand only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers them


def is_arithmetic(text: str) -> bool:
    """Whether a text is arithmetic over symbols and numbers, so that evaluating it is harmless.

    Both `s0 + 2*s1` and the long form `Add(Symbol('s0', positive=True), Integer(2))` are.
    """
    if not _EXPRESSION.fullmatch(text):
        return False
    try:
        tree = ast.parse(text, mode="eval")
        return _is_harmless(tree.body)
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        return False


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return True
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)]):
            return _SYMBOL.fullmatch(name) is not None and _are_flags(node.keywords)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as number)]):
            return _NUMBER.fullmatch(number) is not None and _are_flags(node.keywords)
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return _FUNCTION.fullmatch(name) is not None and all(_is_harmless(a) for a in node.args)
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=int() as power)) if (
            abs(power) > _MAX_EXPONENT
        ):
            return False
        case ast.BinOp() | ast.UnaryOp() | ast.BoolOp() | ast.Compare():
            return all(_is_harmless(n) for n in ast.iter_child_nodes(node))
    return isinstance(node, _ARITHMETIC)


def _are_flags(keywords: list[ast.keyword]) -> bool:
    return all(
        k.arg in _KEYWORDS
        and isinstance(k.value, ast.Constant)
        and isinstance(k.value.value, bool | int)
        for k in keywords
    )


def _is_guard(text: str) -> bool:
    return is_arithmetic(_PYTHON_MATH.sub("", _SOURCE.sub("s0", text)))


def _is_tree(text: str) -> bool:
    """The structure of arguments: containers of Python and torch, with plain keys."""
    try:
        _protocol, root = json.loads(text)
        return _is_container(root)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_container(node: Any) -> bool:
    if node["type"] is not None and node["type"] not in _TREES:
        return False
    context = json.loads(node["context"]) if node["context"] is not None else None
    keys = context if isinstance(context, list) else [context]
    if not all(k is None or isinstance(k, int) or _is_key(k) for k in keys):
        return False
    return all(_is_container(child) for child in node["children_spec"])


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and _PLAIN.fullmatch(key) is not None
