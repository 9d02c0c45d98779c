"""Records to JSON and back, TOML to records, and files that hold the old contents or the new."""

import contextlib
import errno
import json
import logging
import os
import reprlib
import shutil
import tomllib
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from bench.errors import InputError, OutputError, VnnifyError, full_disk

logger = logging.getLogger(__name__)

R = TypeVar("R")

# 1: first.
SCHEMA = 1


def dump(record: object) -> bytes:
    """A record (a dataclass of plain values and other records) as JSON, the same bytes every time.

    Raises:
        TypeError: It holds something else than plain values and records.
        ValueError: It holds a number that is not finite; the message says where. That is a bug:
            such numbers have to be counted, not stored.
    """
    # pydantic itself is left to `load`: writing needs no schema, and what makes schemas takes six
    # times as long to import. Whoever waits for a first verdict waits for this.
    from pydantic_core import to_jsonable_python

    cls: Any = type(record)
    plain = to_jsonable_python(record, fallback=_unstored)
    envelope = {"schema": SCHEMA, "kind": cls.__name__, **plain}
    try:
        text = json.dumps(envelope, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except ValueError:
        record_of(cls, plain)  # Says where the number stands.
        raise
    return text.encode() + b"\n"


def load(cls: type[R], data: bytes, where: Path | str) -> R:
    """Read what `dump` wrote.

    Args:
        cls: The record's class.
        data: The JSON.
        where: What to call it in messages.

    Raises:
        InputError: It is not JSON, of another kind or a newer schema, or does not fit the class: an
            unknown, missing or mistyped field, a number that is not finite.
    """
    envelope = _envelope(data, where)
    if envelope["schema"] != SCHEMA:
        raise InputError(
            f"{where}: has schema {envelope['schema']!r}, this vnnify reads {SCHEMA}. "
            "Use the version that wrote it, or make it again."
        )
    if envelope["kind"] != cls.__name__:
        raise InputError(f"{where}: holds a {envelope['kind']!r}, expected a {cls.__name__!r}.")
    plain = {k: v for k, v in envelope.items() if k not in ("schema", "kind")}
    try:
        return record_of(cls, plain)
    except ValueError as e:
        raise InputError(f"{where}: {e}. Make the file again.") from e


def record_of(cls: type[R], plain: Mapping[str, Any]) -> R:
    """The record that plain values are, from JSON or TOML.

    Args:
        cls: The record's class. What its `__post_init__` refuses with a ValueError is refused here.
        plain: Values by field; dates count as texts.

    Raises:
        ValueError: They do not fit the class: an unknown, missing or mistyped field, a number that
            is not finite. The message begins with the place.
    """
    import pydantic

    try:
        # Not as Python values: strictly, those would have to be tuples and paths already.
        record: R = _adapter(cast(Any, cls)).validate_json(json.dumps([plain], default=str))[0]
    except pydantic.ValidationError as e:
        problem = e.errors()[0]
        place = ".".join(str(p) for p in problem["loc"][1:]) or cls.__name__
        reason = problem["msg"].removeprefix("Value error, ")
        has_found = isinstance(problem["input"], str | int | float | list | None)
        found = f", found {reprlib.repr(problem['input'])}" if has_found else ""
        more = f" ({n} such problems)" if (n := e.error_count()) > 1 else ""
        raise ValueError(f"{place}: {reason}{found}{more}") from e
    return record


def read_bytes(path: Path, advice: str = "") -> bytes:
    """What a file holds that the user named.

    Args:
        path: The file.
        advice: What to do where it is not there.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}. {advice}".rstrip()) from e


def read_toml(path: Path, where: str, wrong: type[VnnifyError]) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: The file.
        where: What to call it in messages.
        wrong: What to raise where it is no TOML.

    Raises:
        InputError: It cannot be read.
        VnnifyError: `wrong`: it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{where}: cannot be read: {e.strerror}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise wrong(f"{where}: not TOML: {e}.") from e


def unstored_schema() -> Any:
    """What the `__get_pydantic_core_schema__` of a class returns to be stored as null.

    For values that records carry in memory and that mean nothing in a file.
    """
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(lambda _: None)


def kind_of(data: bytes, where: Path | str) -> str:
    """Name of the class whose record `dump` wrote.

    Raises:
        InputError: It is not JSON, or no record.
    """
    return str(_envelope(data, where)["kind"])


def _envelope(data: bytes, where: Path | str) -> dict[str, Any]:
    try:
        envelope = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where}: not JSON that vnnify wrote: {e}.") from e
    if not isinstance(envelope, dict) or not {"schema", "kind"} <= envelope.keys():
        raise InputError(f"{where}: is JSON, but no record of vnnify's. Give a file it wrote.")
    return envelope


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that it holds the old or the new contents, whatever happens meanwhile.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            _write(beside, data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as e:
        raise translated(e, path) from e


def place_file(source: Path, path: Path) -> None:
    """Move a file to where it belongs, from another disk too; there it is whole or not at all.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            shutil.move(source, beside)
            sync(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as e:
        raise translated(e, path) from e


def _unstored(value: object) -> None:
    """What JSON holds of a value of a class that `unstored_schema` is for."""
    if not hasattr(type(value), "__get_pydantic_core_schema__"):
        raise TypeError(f"a {type(value).__name__} in a record, which holds plain values only")


@cache
def _adapter(cls: Any) -> Any:
    import pydantic

    # In a tuple: pydantic takes no settings for a plain dataclass at the top, but hands them on.
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(tuple[cls], config=config)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Flush a file to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the filesystem can."""
    # Some network filesystems cannot; the rename is as good as they make it.
    with contextlib.suppress(OSError):
        sync(path)


def refuse_full(folder: Path, size_bytes: int) -> None:
    """Refuse a disk with less room than that, where native code failed to write and not said why.

    Raises:
        ResourceError: It has less.
    """
    if shutil.disk_usage(folder).free < size_bytes:
        reason = f"{os.strerror(errno.ENOSPC)} ({size_bytes:,} bytes are needed)"
        raise translated(OSError(errno.ENOSPC, reason), folder)


def translated(error: OSError, path: Path) -> VnnifyError:
    """An error of the filesystem in our words."""
    reason = error.strerror or str(error)
    return full_disk(OSError(error.errno, reason), path) or OutputError(
        f"{path}: cannot be written: {reason}. Choose another place."
    )
