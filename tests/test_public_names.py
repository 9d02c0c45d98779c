"""What can be imported: names that are promised exist, and modules say what they hold."""

import importlib
import pkgutil

import pytest

import bench
import quantize

MODULES = sorted(
    m.name for p in (bench, quantize) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_holds(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_promised_names_exist_and_are_in_order(name: str) -> None:
    module = importlib.import_module(name)
    promised = getattr(module, "__all__", [])
    assert [n for n in promised if not hasattr(module, n)] == []
    # As ruff sorts them: constants, classes, functions.
    rank = [(not n.isupper(), not n[0].isupper(), n) for n in promised]
    assert rank == sorted(rank)


@pytest.mark.parametrize("package", [bench, quantize], ids=lambda p: p.__name__)
def test_the_packages_promise_nothing_at_the_top(package: object) -> None:
    names = [n for n in vars(package) if not n.startswith("_")]
    modules = {m.split(".")[1] for m in MODULES}
    # Importing anything from the packages is by module: `from bench.latency import measure`.
    assert [n for n in names if n not in modules and n != "switch_off"] == []
