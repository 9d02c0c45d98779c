"""State dicts for a PyTorch module: read without running anything, and fitted strictly."""

import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import InputError, describe_error
from quantize.plugins import nearest

logger = logging.getLogger(__name__)

# Where training scripts keep the state dict inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DataParallel, torch.compile and Lightning put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(module: Any, path: Path) -> None:
    """Load a state dict into a module; every key has to find its place.

    Args:
        module: `torch.nn.Module`.
        path: `.safetensors`, or a file of torch.save that holds nothing but tensors.

    Raises:
        InputError: The file is missing or damaged, would have to be unpickled, or does not fit.
    """
    state = _strip_prefix(_read(path), module, path)
    try:
        outcome = module.load_state_dict(state, strict=False)
    except RuntimeError as e:
        lines = [line.strip(" \t.") for line in str(e).splitlines() if "size mismatch" in line]
        raise InputError(
            f"{path}: does not fit the module: {'; '.join(lines[:3]) or describe_error(e)}. "
            "Make the factory build the model that was trained."
        ) from e
    tied = _tied(module, set(state))
    missing = [k for k in outcome.missing_keys if k not in tied]
    unexpected = list(outcome.unexpected_keys)
    if missing or unexpected:
        raise InputError(f"{path}: does not fit the module: {_differences(missing, unexpected)}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file.{nearest(path.name, near)}")
    with path.open("rb") as stream:
        head = stream.read(32)
    if not head:
        raise InputError(f"{path}: the file is empty. Save or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git LFS pointer, not the weights. Run `git lfs pull`.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Never a second try without `weights_only`: that is how a pickle gets to run.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as e:
        raise InputError(f"{path}: {_why_unreadable(e)}") from e
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            logger.info("%s: using its entry %r", path, name)
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(_is_tensor(v) for v in found.values()):
        raise InputError(
            f"{path}: holds a {type(found).__name__}, expected a state dict (tensors by name). "
            "Save `module.state_dict()`."
        )
    return dict(found)


def _why_unreadable(error: Exception) -> str:
    """What torch's restricted unpickler found, without its advice to lift the restriction."""
    text = str(error)
    kind = None
    if "TorchScript" in text:
        kind = "is a TorchScript archive"
    elif isinstance(error, pickle.UnpicklingError):
        name = re.search(r"GLOBAL ([\w.]+)", text)
        kind = f"holds Python objects ({name[1]})" if name else "holds Python objects"
    if kind is None:
        return f"not a complete file of torch.save: {describe_error(error)[:120]}. Save it again."
    return (
        f"{kind}, and loading those would run code. Where you trust it, save its tensors alone: "
        "safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')."
    )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError) as e:
        raise InputError(
            f"{path}: not a complete safetensors file: {e}. Copy or save it again."
        ) from e


def _strip_prefix(state: dict[str, Any], module: Any, path: Path) -> dict[str, Any]:
    """Take off what a wrapper put before every key, unless the module's own keys start so."""
    own = list(module.state_dict())
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            covered = bool(state) and all(k.startswith(prefix) for k in state)
            if covered and not any(k.startswith(prefix) for k in own):
                logger.info("%s: leaving out the prefix %r of every key", path, prefix)
                state = {k.removeprefix(prefix): v for k, v in state.items()}
                changed = True
    return state


def _tied(module: Any, given: set[str]) -> set[str]:
    """Keys that share their tensor with a given one; safetensors keeps such a tensor once."""
    entries = module.state_dict(keep_vars=True)
    shared = {id(v) for k, v in entries.items() if k in given}
    return {k for k, v in entries.items() if id(v) in shared}


def _differences(missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        hints = nearest(missing[0], unexpected)
        parts.append(f"{len(missing)} missing key(s), the first is {missing[0]!r}.{hints}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected key(s), the first is {unexpected[0]!r}.")
    return " ".join([*parts, "Make the factory build the model that was trained."])
