"""The documents say what is there: commands, options, files, links, exit codes, examples."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer

from bench.errors import ExitCode
from quantize.commands.app import app
from quantize.config import read_config
from quantize.data import read_samples
from quantize.evidence import stacked
from quantize.metrics import METRICS, resolve_metric
from quantize.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
] + sorted(f for folder in ("calibration_data", "docs") for f in (ROOT / folder).rglob("*.md"))
README, CONTRIBUTING = DOCUMENTS[0], DOCUMENTS[1]
GUIDES = [d for d in DOCUMENTS if d.parent.name == "docs"]
MANUAL = [README, *GUIDES]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Options that belong to no command.
EVERYWHERE = ("--debug", "--help", "--version")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_REPOSITORY = re.compile(
    r"(bench|quantize|tests|calibration_data|\.github|\.ci)/[\w./-]*|"
    r"(README|CHANGELOG|CONTRIBUTING|SECURITY)\.md|LICENSE|Makefile|constraints\.txt|pyproject\.toml"
)


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in _BLOCK.findall(path.read_text("utf-8")) if kind == language]


def prose(path: Path) -> str:
    return _BLOCK.sub("", path.read_text("utf-8"))


def manual() -> str:
    return "\n".join(d.read_text("utf-8") for d in MANUAL)


def command_lines() -> list[str]:
    lines = []
    for document in DOCUMENTS:
        for body in blocks(document, "sh"):
            whole = re.sub(r"\\\n\s*", "", body)
            lines += [line for line in whole.splitlines() if line.startswith("vnnify ")]
    makefile = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text("utf-8"))
    lines += re.findall(r"^\t\$\(BIN\)/(vnnify .*)$", makefile, re.MULTILINE)
    return lines


def test_the_documents_show_every_command() -> None:
    shown = {shlex.split(line)[1] for line in command_lines()}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(line, comments=True)
    COMMANDS[name].make_context(name, arguments)


def test_a_command_line_with_an_unknown_option_would_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["report"].make_context("report", ["a.json", "--pdf", "a.pdf"])


def test_options_in_the_prose_exist() -> None:
    known = {o for c in COMMANDS.values() for p in c.params for o in p.opts} | set(EVERYWHERE)
    for document in (*MANUAL, DOCUMENTS[2]):
        named = {
            o
            for code in _CODE.findall(prose(document))
            for o in re.findall(r"--[a-z][a-z0-9-]*", code)
        }
        assert named <= known, document.name


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_explained_and_in_the_manual(name: str) -> None:
    text = manual()
    for parameter in COMMANDS[name].params:
        longest = max(parameter.opts, key=len)
        assert getattr(parameter, "help", None), f"{name} {longest} has no help"
        if longest.startswith("--") and longest != "--help":
            assert re.search(rf"{longest}\b", text), f"no guide names {longest} of {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{document.name}: {link}"


def _anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    for code in _CODE.findall(prose(document)):
        for word in code.split():
            word = word.partition(":")[0]
            if _REPOSITORY.fullmatch(word) and "NAME" not in word:
                assert (ROOT / word).exists(), f"{document.name} names {word}"


def test_the_table_of_exit_codes_is_complete() -> None:
    section = README.read_text("utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)] == list(ExitCode)


@pytest.mark.parametrize("names", [METRICS, TARGETS], ids=["metrics", "targets"])
def test_the_manual_names_what_can_be_chosen(names: dict[str, object]) -> None:
    text = manual()
    assert [n for n in names if f"`{n}`" not in text] == []


def test_the_readme_shows_every_target_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets
    assert [t for t in targets if f"`{t}`" not in README.read_text("utf-8")] == []


def test_the_configurations_in_the_manual_are_accepted(tmp_path: Path) -> None:
    tables = [b for d in (README, ROOT / "docs" / "quantize.md") for b in blocks(d, "toml")]
    assert len(tables) == 2
    for body in tables:
        tomllib.loads(body)
        (tmp_path / "vnnify.toml").write_text(body, "utf-8")
        read_config(tmp_path)


def test_the_preprocessing_in_the_manual_is_complete() -> None:
    from quantize.images import Preprocessing

    (body,) = (b for b in blocks(ROOT / "docs" / "quantize.md", "toml") if "[preprocessing]" in b)
    shown = tomllib.loads(body)["preprocessing"]
    assert set(shown) == set(Preprocessing.__slots__)


def example(name: str, folder: Path) -> str:
    (body,) = (b for d in MANUAL for b in blocks(d, "python") if b.startswith(f"# {name}\n"))
    (folder / name).write_text(body, "utf-8")
    return str(folder / name)


def test_the_data_function_in_the_manual_works(tmp_path: Path) -> None:
    from bench.models import TensorSpec

    file = example("samples.py", tmp_path)
    inputs = (TensorSpec("x", "float32", (None, 8)),)
    found = read_samples(f"{file}:samples", inputs, scratch=tmp_path, limit=10)
    assert len(found) == 10
    assert found.label(3) == 1


def test_the_metric_in_the_manual_works(tmp_path: Path) -> None:
    file = example("error.py", tmp_path)
    metric = resolve_metric(f"{file}:absolute_error", labelled=True)
    scores = metric.score({"y": np.array([[1.0], [4.0]], np.float32)}, np.array([1.5, 2.0]))
    assert scores == [0.5, 2.0]
    assert not metric.higher_is_better


def test_the_metric_of_a_whole_data_set_in_the_manual_works(tmp_path: Path) -> None:
    metric = resolve_metric(f"{example('f1.py', tmp_path)}:f1", labelled=True)
    rows = metric.score({"y": np.array([[0, 1], [0, 1], [1, 0]])}, np.array([1, 0, 1]))
    assert metric.corpus is not None
    assert metric.bounded
    assert metric.corpus(stacked(rows)) == 0.5


def test_the_design_names_every_module() -> None:
    section = CONTRIBUTING.read_text("utf-8").partition("### Where things are")[2]
    section = section.partition("\n### ")[0]
    for package, table in zip(("bench", "quantize"), section.split("| `quantize` |"), strict=True):
        entries = (p for p in (ROOT / package).iterdir() if not p.name.startswith(("_", "py.")))
        there = {f"{p.name}/" if p.is_dir() else p.name for p in entries}
        assert there == {c for c in _CODE.findall(table) if c.endswith((".py", "/"))}, package


def test_the_table_of_extensions_names_tables_that_exist() -> None:
    section = CONTRIBUTING.read_text("utf-8").partition("### What each extension touches")[2]
    places = re.findall(r"`([A-Z_]+)` in `([\w/]+)\.py`", section)
    assert len(places) >= 8
    for table, file in places:
        module = importlib.import_module(file.replace("/", ".").removesuffix(".__init__"))
        assert len(getattr(module, table)) > 0


def test_no_document_names_a_place_on_one_machine() -> None:
    for document in [*DOCUMENTS, ROOT / "Makefile", ROOT / "constraints.txt", ROOT / ".ci" / "run"]:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp|opt)/", document.read_text("utf-8"))
