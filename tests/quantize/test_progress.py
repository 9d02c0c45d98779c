import io
from pathlib import Path

import pytest

from quantize import progress
from quantize.job import Progress
from quantize.progress import progress_for, tell_of_interrupt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    return now


def use(shown: Progress) -> None:
    shown.begin("baseline")
    shown.step(1, 2)
    shown.say("FP32: top1 0.9")
    shown.begin("search")


def test_a_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    with progress_for(stream) as shown:
        use(shown)
    assert stream.getvalue() == "scoring FP32 …\n  FP32: top1 0.9\nsearching …\n"


def test_an_interrupt_is_answered_past_what_the_stream_holds_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("half a line")
        tell_of_interrupt(stream)
        assert "once more ends the run" in path.read_text()


def test_steps_come_at_most_every_few_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_for(stream) as shown:
        shown.begin("calibrate")
        for done in range(1, 13):
            clock[0] += 1
            shown.step(done, 1200)
    lines = stream.getvalue().splitlines()
    assert lines == ["calibrating …", "calibrating: 5 of 1,200", "calibrating: 10 of 1,200"]


def test_an_unknown_stage_is_named_as_it_is() -> None:
    stream = io.StringIO()
    with progress_for(stream) as shown:
        shown.begin("polish")
    assert stream.getvalue() == "polish …\n"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_is_said_cannot_drive_the_terminal(kind: type[io.StringIO]) -> None:
    stream = kind()
    with progress_for(stream) as shown:
        shown.say("evil \x1b]0;title\x07 [bold]name[/bold]")
    assert "\x1b]0;" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "[bold]name[/bold]" in stream.getvalue()


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with progress_for(stream) as shown:
        use(shown)
    assert "scoring FP32" in stream.getvalue()
    assert "FP32: top1 0.9" in stream.getvalue()
    assert "searching" in stream.getvalue()


def test_a_new_stage_starts_without_the_old_count() -> None:
    with progress_for(Terminal()) as shown:
        shown.begin("calibrate")
        shown.step(64, 64)
        shown.begin("search")
        assert isinstance(shown, progress._Terminal)
        task = shown.live.tasks[-1]
        assert (task.description, task.completed, task.total) == ("searching", 0, None)
        assert len(shown.live.tasks) == 1


def test_a_terminal_is_drawn_a_few_times_a_second_and_at_the_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    with progress_for(Terminal()) as shown:
        shown.begin("baseline")
        monkeypatch.setattr(
            shown.live,  # type: ignore[attr-defined]
            "update",
            lambda _task, *, completed, total: drawn.append(completed),
        )
        for done in range(1, 1001):
            clock[0] += 0.001
            shown.step(done, 1000)
        shown.begin("verify")
        shown.step(7, 1000)
    assert drawn[0] == 1
    assert drawn[-2:] == [1000, 7]
    assert len(drawn) < 15
