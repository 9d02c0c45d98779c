"""Options from `[tool.vnnify]` of pyproject.toml or from vnnify.toml; the command line wins."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.store import read_toml, record_of
from quantize.plugins import nearest

if TYPE_CHECKING:
    from quantize.images import Preprocessing

# Keys that stand for options of the same name, with dashes.
OPTIONS = (
    "data",
    "calibration",
    "calibration_samples",
    "limit",
    "metric",
    "output",
    "decode",
    "max_drop",
    "confidence",
    "inconclusive",
    "target",
    "objective",
    "engine",
    "rounding",
    "runtime",
    "threads",
    "budget",
    "rounds",
    "seconds",
    "seed",
    "min_speedup",
    "slices",
    "unit",
    "max_slice_drop",
    "max_size",
    "min_compression",
    "baseline",
    "out",
    "weights",
)

# The same for the table `bench`, which `vnnify bench` reads in place of all others.
BENCH_OPTIONS = (
    "data",
    "runtime",
    "device",
    "batch",
    "threads",
    "streams",
    "rate",
    "p99",
    "rounds",
    "seconds",
    "seed",
    "prices",
    "utilisation",
    "weights",
)
BENCH_SWITCHES = ("no_peaks", "no_operators")

TEMPLATE = """# Options of vnnify; the command line wins over this file. Uncomment what you need.

# data = "val/"                  # .npz, folder of samples or images, or file.py:function
# metric = "top1"                # top1, f1, mse, cosine, map, … or file.py:function
# decode = "decode.py:boxes"     # makes of the outputs what the metric takes
# max_drop = "1pt"               # 1pt: points of a 0..1 metric, 1%: of FP32's value, 0.1abs
# inconclusive = "fail"          # fail, warn or pass when samples or machine cannot tell
# target = "auto"                # auto, portable, vnni, amx, avx2
# objective = "latency"          # or throughput, or size, which takes models slower than FP32
# runtime = "onnxruntime,openvino"  # where it may be served; gate judges in each
# engine = "native"              # or "nncf", "inc", or "native,nncf" for the better of the two
# rounding = "auto"              # of weights: auto, nearest, learned
# threads = 0                    # 0: all that this process may use
# calibration_samples = 256
# budget = "10m"                 # then the search keeps the best it has

# How images of a folder become arrays.
# [preprocessing]
# resize = 256                   # short side, or [height, width]
# crop = 224
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
# channel_order = "rgb"          # or "bgr"
# layout = "nchw"                # or "nhwc"

# What `vnnify bench` does; it reads this table alone.
# [bench]
# data = "val.npz"
# batch = "1,8,32"
# threads = 1
# streams = "auto"               # inferences at once, to the best throughput
# p99 = "20ms"                   # look for the highest rate that holds it
# prices = "prices.toml"
"""


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says.

    Attributes:
        options: By parameter name.
        preprocessing: Of images; None where the file says nothing.
        where: The file, or "" where there is none.
        bench: Options of `vnnify bench`, by parameter name.
    """

    options: dict[str, Any]
    preprocessing: "Preprocessing | None"
    where: str
    bench: dict[str, Any] = field(default_factory=dict)

    def defaults(self, command: str | None) -> dict[str, Any]:
        """What the options of a command are where the command line does not give them.

        `out` is the folder of `quantize`, and a file of `gate`. `bench` has a table of its own:
        what calibrates and judges is seldom what is timed.
        """
        if command == "bench":
            return dict(self.bench)
        if command != "gate":
            return dict(self.options)
        return {k: v for k, v in self.options.items() if k != "out"}


def read_config(folder: Path) -> Config:
    """Read vnnify.toml, or else `[tool.vnnify]` of pyproject.toml, in `folder`.

    Raises:
        InputError: It cannot be read.
        UsageError: It is no TOML, or holds an unknown key or a value of the wrong type.
    """
    own, project = folder / "vnnify.toml", folder / "pyproject.toml"
    if own.is_file():
        return _config(read_toml(own, str(own), UsageError), str(own))
    if project.is_file():
        tools = read_toml(project, str(project), UsageError).get("tool", {})
        table = tools.get("vnnify", {}) if isinstance(tools, dict) else {}
        return _config(table, f"{project} [tool.vnnify]")
    return Config({}, None, "")


def _config(table: Any, where: str) -> Config:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: has to be a table of options, found {table!r}.")
    table = dict(table)
    images, timing = table.pop("preprocessing", None), table.pop("bench", {})
    if not isinstance(timing, dict):
        raise UsageError(f"{where}: `bench` has to be a table.")
    _check(table, "", [*OPTIONS, "preprocessing", "bench"], (), where)
    _check(timing, "bench.", [*BENCH_OPTIONS, *BENCH_SWITCHES], BENCH_SWITCHES, where)
    read = None if images is None else _preprocessing(images, where)
    return Config(table, read, where, timing)


def _check(
    table: dict[str, Any], prefix: str, known: list[str], switches: Sequence[str], where: str
) -> None:
    """Refuse unknown keys, and values that are no option's."""
    for key, value in table.items():
        name = prefix + key
        if key not in known:
            raise UsageError(f"{where}: unknown key {name!r}.{nearest(key, known)}")
        if key in switches:
            if not isinstance(value, bool):
                raise UsageError(f"{where}: {name} = {value!r}: expected true or false.")
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UsageError(f"{where}: {name} = {value!r}: expected one text or number.")


def _preprocessing(table: Any, where: str) -> "Preprocessing":
    from quantize.images import Preprocessing

    known = [f.name for f in fields(Preprocessing)]
    if not isinstance(table, dict):
        raise UsageError(f"{where}: `preprocessing` has to be a table.")
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key 'preprocessing.{key}'.{nearest(key, known)}")
    try:
        return record_of(Preprocessing, table)
    except ValueError as e:
        raise UsageError(f"{where} preprocessing: {e}.") from e
