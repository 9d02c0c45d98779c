"""Where the time goes: milliseconds per node, from ONNX Runtime's own profiler."""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from bench.models import Feeds
from bench.runtimes.onnxruntime import session_options
from bench.runtimes.seam import Settings

_KERNEL = "_kernel_time"


def node_times(
    path: Path,
    feeds: Feeds,
    *,
    threads: int,
    runs: int,
    scratch: Path,
    optimize: Literal["all", "none"] = "all",
) -> dict[str, float]:
    """Mean time of every node that really ran, in ms, by the name that the optimizer gave it.

    Fused and integer nodes carry names derived from what they replaced: `<output>_nchwc` for a
    blocked convolution, `<node>_token_<n>` for one that was built from Q/DQ pairs.

    Args:
        path: The model.
        feeds: One sample.
        threads: Inside one inference.
        runs: Inferences to average over, after two that do not count.
        scratch: Folder for the profiler's file, which is removed.
        optimize: "none" for a graph that was optimized before.
    """
    import onnxruntime as ort

    options = session_options(Settings(threads=threads, optimize=optimize))
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(runs + 2):
        session.run(None, feeds)
    file = Path(session.end_profiling())
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    spent: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        node = name.removesuffix(_KERNEL)
        seen[node] += 1
        # The first two runs allocate and pack; they stand for no later one.
        if seen[node] > 2:
            spent[node] += event["dur"]
    return {node: spent[node] / runs / 1e3 for node in seen}
