"""What runs inside the emulated machine: models on samples, every output as a line of JSON.

It is copied there as a file, so it imports nothing but the standard library, numpy and
onnxruntime. A job is a folder with one folder per model: `model.onnx` and `0000.npz`, `0001.npz`, …
with one array per input, called `=` and its name. The lines are these records, in this order:

    {"flags": [...], "onnxruntime": "1.31.1"}                        once
    {"case": ..., "mode": ..., "sample": 0, "outputs": {name: [dtype, shape, base64 of zlib]}}
    {"case": ..., "mode": ..., "error": "..."}                       in place of the rest of a model
    {"end": true}                                                    once
"""

import base64
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MODES = ("native", "exact")
_OPTION = "session.x64quantprecision"


def run(job: Path, out: BinaryIO, modes: list[str]) -> None:
    """Run every model of a job.

    Args:
        job: Its folder.
        out: Takes the lines.
        modes: Of `MODES`: with ONNX Runtime's own settings, and switched to exact products.
    """
    import onnxruntime

    _write(out, {"flags": cpu_flags(), "onnxruntime": onnxruntime.__version__})
    for case in sorted(p for p in job.iterdir() if p.is_dir()):
        for mode in modes:
            for record in _outputs(case, exact=mode == "exact"):
                _write(out, {"case": case.name, "mode": mode, **record})
    _write(out, {"end": True})


def _outputs(case: Path, *, exact: bool) -> Iterator[dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry(_OPTION, "1")
    try:
        session = ort.InferenceSession(
            str(case / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        names = [o.name for o in session.get_outputs()]
        for index, file in enumerate(sorted(case.glob("*.npz"))):
            with np.load(file) as stored:
                found = session.run(None, {n[1:]: a for n, a in stored.items()})
            outputs = {n: encode(a) for n, a in zip(names, found, strict=True)}
            yield {"sample": index, "outputs": outputs}
    except Exception as e:  # noqa: BLE001 - carried out of the machine as text, whatever it is
        yield {"error": f"{type(e).__name__}: {e}"[:2000]}


def cpu_flags() -> list[str]:
    """Flags of the first CPU, as the kernel gives them."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])


def encode(array: Any) -> list[Any]:
    """An array as `[dtype, shape, base64 of its compressed bytes]`, for JSON."""
    found = np.ascontiguousarray(array)
    if found.dtype == object:
        found = found.astype(str)
    packed = base64.b64encode(zlib.compress(found.tobytes())).decode()
    return [found.dtype.str, list(np.shape(array)), packed]


def decode(record: list[Any]) -> Any:
    """The array that `encode` took.

    Raises:
        ValueError: The bytes are damaged or do not fit type and shape.
    """
    dtype, shape, packed = record
    try:
        raw = zlib.decompress(base64.b64decode(packed, validate=True))
    except zlib.error as e:
        raise ValueError(f"an output came out damaged: {e}") from e
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)


def loaded_files() -> list[str]:
    """Every file that this process has needed so far: sources, their bytecode, libraries."""
    # Not by getattr: some modules make up any attribute that they are asked for.
    modules = [getattr(m, "__dict__", {}) for m in list(sys.modules.values())]
    found = {str(m.get(k)) for m in modules for k in ("__file__", "__cached__")}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    found |= {line.split(maxsplit=5)[5] for line in maps if ".so" in line}
    found.add(sys.executable)
    return sorted(f for f in found if f.startswith("/") and Path(f).is_file())


def _write(out: BinaryIO, record: dict[str, Any]) -> None:
    out.write(json.dumps(record).encode() + b"\n")
    out.flush()


def main(arguments: list[str]) -> None:
    """`JOB OUT MODE...`; a mode called `files` adds a last line with all files that were needed."""
    import traceback  # noqa: F401 - so that it is in the image when a model fails there

    job, target, *modes = arguments
    with Path(target).open("wb", buffering=0) as out:
        run(Path(job), out, [m for m in modes if m in MODES])
        if "files" in modes:
            _write(out, {"files": loaded_files()})


if __name__ == "__main__":
    main(sys.argv[1:])
