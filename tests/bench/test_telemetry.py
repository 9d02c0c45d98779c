import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import telemetry

ROOT = str(Path(__file__).parents[2])


def _run(code: str, home: Path) -> None:
    environ = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environ)


def test_onnxruntime_leaves_nothing_behind(tmp_path: Path) -> None:
    """With its telemetry on it writes a session file and a device number."""
    _run("import bench, onnxruntime", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_package_reaches_onnxruntime_in_time_from_everywhere(tmp_path: Path) -> None:
    _run("from bench.runtimes import find_runtime; find_runtime('onnxruntime').version()", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
def test_openvino_has_no_telemetry_to_call(tmp_path: Path) -> None:
    code = (
        "import bench, openvino, sys; assert sys.modules['openvino_telemetry'] is None; "
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry.')]"
    )
    _run(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_imported_before_us_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    early = SimpleNamespace(disable_telemetry_events=lambda: calls.append(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", early)
    telemetry.switch_off()
    assert calls == [1]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
