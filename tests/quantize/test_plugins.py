import sys
from pathlib import Path

import pytest

from bench.errors import InputError, UsageError
from quantize.plugins import blame, is_function_text, load_function


def _file(folder: Path, text: str, name: str = "plugin.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py:f", True),
        ("/x y/a.py:f", True),
        ("pkg.mod:f", True),
        ("a.py", False),
        ("data.npz", False),
        ("pkg/mod:f", False),
        ("a.py:", False),
        ("a.py:f()", False),
    ],
)
def test_only_the_two_forms_are_functions(text: str, *, expected: bool) -> None:
    assert is_function_text(text) is expected


def test_a_file_runs_with_its_siblings_importable(tmp_path: Path) -> None:
    _file(tmp_path, "VALUE = 7\n", "sibling_of_plugin.py")
    path = _file(tmp_path, "from sibling_of_plugin import VALUE\ndef f():\n    return VALUE\n")

    assert load_function(f"{path}:f", what="metric")() == 7
    assert str(tmp_path) not in sys.path
    assert not (tmp_path / "plugin.pyc").exists()
    del sys.modules["sibling_of_plugin"]


def test_a_module_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(tmp_path, "def f():\n    return 3\n", "module_in_cwd.py")
    monkeypatch.chdir(tmp_path)

    assert load_function("module_in_cwd:f", what="metric")() == 3
    del sys.modules["module_in_cwd"]


def test_a_dataclass_in_a_file_can_be_made(tmp_path: Path) -> None:
    text = "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 1\n"
    assert load_function(f"{_file(tmp_path, text)}:A", what="metric")().x == 1


def test_a_misspelt_function_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = _file(tmp_path, "def samples():\n    pass\n")
    with pytest.raises(UsageError, match=r"'sampels' does not exist.*Did you mean 'samples'"):
        load_function(f"{path}:sampels", what="data function")


def test_something_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'x' is not callable"):
        load_function(f"{_file(tmp_path, 'x = 1')}:x", what="metric")


def test_a_missing_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    _file(tmp_path, "", "metric.py")
    with pytest.raises(InputError, match=r"no such file.*Did you mean '.*metric.py'"):
        load_function(f"{tmp_path}/metrics.py:f", what="metric")


def test_a_missing_module_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no module 'there_is_none'"):
        load_function("there_is_none:f", what="metric")


def test_a_missing_import_inside_a_file_names_its_line(tmp_path: Path) -> None:
    path = _file(tmp_path, "x = 1\nimport there_is_none\n")
    with pytest.raises(InputError, match=r"plugin.py:2: .*ModuleNotFoundError"):
        load_function(f"{path}:f", what="metric")


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    path = _file(tmp_path, "x = 1\ndef f(:\n")
    with pytest.raises(InputError, match=r"plugin.py:2: .*SyntaxError"):
        load_function(f"{path}:f", what="metric")


def test_text_of_another_form_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"neither file.py:function"):
        load_function("plugin.py", what="metric")


def test_errors_name_the_users_line_and_not_a_librarys(tmp_path: Path) -> None:
    path = _file(tmp_path, "import json\ndef f():\n    return json.loads('{')\n")
    function = load_function(f"{path}:f", what="metric")
    with (
        pytest.raises(InputError, match=r"plugin.py:3: the metric raised JSONDecodeError"),
        blame(f"{path}:f", what="metric"),
    ):
        function()


def test_user_code_cannot_end_the_process(tmp_path: Path) -> None:
    path = _file(tmp_path, "import sys\ndef f():\n    sys.exit(0)\n")
    function = load_function(f"{path}:f", what="metric")
    with pytest.raises(InputError, match="SystemExit"), blame(f"{path}:f", what="metric"):
        function()


def test_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(UsageError, match=r"^mine$"), blame("a.py:f", what="metric"):
        raise UsageError("mine")


def test_prints_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, "print('at import')\ndef f():\n    print('in call')\n")
    function = load_function(f"{path}:f", what="metric")
    with blame(f"{path}:f", what="metric"):
        function()

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "at import\nin call\n"
