from pathlib import Path

import pytest

from bench.errors import ResourceError, UnfitError
from quantize.proof import debian


@pytest.fixture
def present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every tool is there, and no kernel."""
    needed = {}
    for package in debian.NEEDED.values():
        file = tmp_path / "root" / package
        file.parent.mkdir(exist_ok=True)
        file.touch()
        needed[str(file)] = package
    monkeypatch.setattr(debian, "NEEDED", needed)
    monkeypatch.setattr(debian, "_BOOT", tmp_path / "boot")
    return needed


def test_nothing_is_missing_with_all_tools_and_a_kernel(
    present: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "linux-image-6.1.0-9-cloud-amd64_6.1.1-1_amd64.deb").touch()
    assert debian.missing_packages(tmp_path) == ()
    debian.require_packages(tmp_path)


def test_an_installed_kernel_serves_as_well(present: dict[str, str], tmp_path: Path) -> None:
    kernel = tmp_path / "boot" / "vmlinuz-6.1.0-9-cloud-amd64"
    kernel.parent.mkdir()
    kernel.touch()
    assert debian.missing_packages(tmp_path) == ()
    assert debian.kernel_in(tmp_path) == kernel


def test_the_message_names_what_is_missing_and_how_to_get_it(
    present: dict[str, str], tmp_path: Path
) -> None:
    next(Path(f) for f, p in present.items() if p == "xorriso").unlink()
    with pytest.raises(UnfitError) as e:
        debian.require_packages(tmp_path / "cache")
    said = str(e.value)
    assert "missing here: xorriso, linux-image-cloud-amd64." in said
    assert "apt-get install xorriso (as root)" in said
    assert str(tmp_path / "cache") in said
    assert e.value.exit_code == 7


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/vnnify/proof"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/vnnify/proof"),
    ],
)
def test_the_cache_is_the_users(environ: dict[str, str], folder: str) -> None:
    assert debian.cache_folder(environ) == Path(folder)


def unpack(command: list[str], folder: Path | None = None) -> None:
    tool, option, _, target = command
    assert (tool, option) == ("dpkg-deb", "-x")
    boot = Path(target) / "boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-6.1.0-9-cloud-amd64").write_bytes(b"kernel")


def test_a_downloaded_kernel_is_unpacked_once(
    present: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linux-image-6.1.0-9-cloud-amd64_6.1.1-1_amd64.deb").touch()
    monkeypatch.setattr(debian, "run_tool", unpack)
    kernel = debian.kernel_in(tmp_path)
    assert kernel.read_bytes() == b"kernel"
    assert not list(tmp_path.glob(".linux*"))
    monkeypatch.setattr(debian, "run_tool", pytest.fail)
    assert debian.kernel_in(tmp_path) == kernel


def test_a_package_without_a_kernel_is_refused(
    present: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linux-image-6.1.0-9-cloud-amd64_6.1.1-1_amd64.deb").touch()
    monkeypatch.setattr(debian, "run_tool", lambda *_: None)
    with pytest.raises(UnfitError, match="holds no kernel"):
        debian.kernel_in(tmp_path)


def test_a_tool_that_fails_is_quoted() -> None:
    debian.run_tool(["true"])
    with pytest.raises(ResourceError, match="sh ended with status 3: no space"):
        debian.run_tool(["sh", "-c", "echo no space >&2; exit 3"])
