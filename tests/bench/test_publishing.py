import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import publishing
from bench.errors import OutputError
from bench.publishing import publish, staging_for, write_manifest
from tests.fakes import fail_at

ROOT = str(Path(__file__).parents[2])


def _make(out: Path, text: str, *, force: bool = False) -> None:
    with staging_for(out, force=force) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "model.onnx").write_text(text)
        write_manifest(staging, {"verdict": "pass"}, {"vnnify": "1.2", "numpy": "2"})
        publish(staging, out, force=force)


def _text(out: Path) -> str:
    return (out / "sub" / "model.onnx").read_text()


def whole(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, every file checked against it."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"manifest.json", *manifest["files"]}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    return manifest


def test_a_published_folder_is_complete_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    _make(out, "one")
    assert _text(out) == "one"
    manifest = whole(out)
    assert manifest["verdict"] == "pass"
    assert manifest["files"]["sub/model.onnx"]["size_bytes"] == 3
    assert (manifest["version"], manifest["packages"]) == ("1.2", {"numpy": "2"})
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _make(tmp_path / "out", "one")
    assert _text(tmp_path / "out") == "one"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_exists_is_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out, "one")
    with pytest.raises(OutputError, match="--force"), staging_for(out):
        pytest.fail("the work began")
    assert _text(out) == "one"


def test_force_replaces_what_vnnify_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out, "one")
    _make(out, "two", force=True)
    assert _text(out) == "two"
    assert list(tmp_path.iterdir()) == [out]


def test_force_does_not_delete_what_others_made(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    (out / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="not made by vnnify"), staging_for(out, force=True):
        pytest.fail("the work began")
    assert (out / "thesis.tex").exists()


def test_files_and_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, says in (("file", "is a file"), ("link", "link"), ("dangling", "link")):
        with pytest.raises(OutputError, match=says), staging_for(tmp_path / name, force=True):
            pytest.fail("the work began")


def test_the_root_of_the_filesystem_is_refused() -> None:
    with pytest.raises(OutputError, match="root of the filesystem"), staging_for(Path("/")):
        pytest.fail("the work began")


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), staging_for(tmp_path / "file/out"):
        pytest.fail("the work began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_refused_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"), staging_for(tmp_path / "out"):
        pytest.fail("the work began")


def test_failed_work_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with staging_for(tmp_path / "out") as staging:
            (staging / "half").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_work_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging_for(tmp_path / "out"):
        (tmp_path / "data").read_bytes()


def test_a_folder_without_manifest_is_not_published(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"manifest\.json"),
        staging_for(tmp_path / "out") as staging,
    ):
        publish(staging, tmp_path / "out")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("existing", [True, False])
def test_publishing_is_all_or_nothing_wherever_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchange: bool, existing: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(publishing, "_exchange", lambda _a, _b: False)
    failures = 0
    for step in range(60):
        folder = tmp_path / str(step)
        folder.mkdir()
        out = folder / "out"
        if existing:
            _make(out, "old")
        with monkeypatch.context() as patch:
            fail_at(patch, step)
            try:
                _make(out, "new", force=True)
                done = True
            except (OutputError, OSError):
                failures += 1
                done = False
        if out.exists():
            whole(out)
            assert _text(out) == "new" if done else _text(out) in ("old", "new")
        else:
            assert not existing
            assert not done
        assert [p.name for p in folder.iterdir()] == ["out"] * out.exists()
        shutil.rmtree(folder)
        if done and step > 20:
            break
    else:
        pytest.fail("never reached the end")
    assert failures >= 6


def test_a_run_killed_between_two_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out[1]"
    _make(out, "old")
    out.rename(tmp_path / ".out[1].old-abc")
    (tmp_path / ".out[1].staging-dead").mkdir()
    with pytest.raises(OutputError, match="exists already"), staging_for(out):
        pytest.fail("the work began")
    assert _text(out) == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_leftovers_of_a_finished_run_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out, "new")
    (tmp_path / ".out.old-abc").mkdir()
    (tmp_path / ".other.staging-abc").mkdir()
    _make(out, "newer", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.staging-abc", "out"]


def test_a_second_run_is_told_who_holds_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        staging_for(out) as first,
        pytest.raises(OutputError, match=f"process {os.getpid()} on "),
        staging_for(out),
    ):
        pytest.fail("two at once")
    assert not first.exists()
    with staging_for(out):
        pass


def test_a_killed_run_leaves_nothing_to_unlock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from bench.publishing import staging_for\n"
        "with staging_for(Path(sys.argv[1])) as s: (s / 'x').touch(); time.sleep(60)"
    )
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT)
    while not list(tmp_path.glob(".out.staging-*/x")):
        assert holder.poll() is None
        time.sleep(0.02)
    with pytest.raises(OutputError, match=f"process {holder.pid} "), staging_for(out):
        pytest.fail("two at once")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    _make(out, "next")
    assert list(tmp_path.iterdir()) == [out]


def _compete(out: str, wins: Any) -> None:
    for _ in range(30):
        try:
            with staging_for(Path(out)):
                assert len(list(Path(out).parent.glob(".out.staging-*"))) == 1
                wins.put(1)
        except OutputError:
            pass


def test_many_runs_never_hold_the_lock_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    wins: Any = context.Queue()
    runs = [context.Process(target=_compete, args=(str(tmp_path / "out"), wins)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    assert not wins.empty()
    wins.close()
    wins.join_thread()


def test_the_manifest_cannot_be_overruled(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"tool": "other", "files": {}}, {})
    assert whole(tmp_path)["tool"] == "vnnify"


def test_without_renameat2_nothing_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert publishing._exchange(tmp_path / "a", tmp_path / "b") is False
