"""Embedding bags as lookups and sums.

torch writes them to ONNX as a Loop over bags that grows a sequence, one for each table, which is
most of what an inference of a recommender takes.
"""

from typing import Any, NamedTuple

# By their numbers in exported programs.
_MODES = ("sum", "mean", "max")


class _Bags(NamedTuple):
    """What `torch.nn.functional.embedding_bag` takes, by its names and in its order."""

    input: Any
    weight: Any
    offsets: Any = None
    max_norm: float | None = None
    norm_type: float = 2
    scale_grad_by_freq: bool = False
    mode: str = "mean"
    sparse: bool = False
    per_sample_weights: Any = None
    include_last_offset: bool = False
    padding_idx: int | None = None


def bags_as_sums(torch: Any) -> Any:
    """A context for exporting: embedding bags in it run as lookups, and sums or means.

    Maxima, and tables that a lookup changes (`max_norm`), run as ever.
    """

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self,
            func: Any,
            types: Any,
            args: Any = (),
            kwargs: Any = None,
        ) -> Any:
            kwargs = kwargs or {}
            bags = None
            if func is torch.nn.functional.embedding_bag:
                bags = _Bags(*args, **kwargs)
            elif func is torch.ops.aten.embedding_bag.padding_idx:
                bags = _in_program(*args, **kwargs)
            if bags is None or bags.max_norm is not None or bags.mode == "max":
                return func(*args, **kwargs)
            found = _reduced(bags, torch)
            # The operator returns what only its gradient needs, too.
            return found if func is torch.nn.functional.embedding_bag else (found, None, None, None)

    return Mode()


def _in_program(weight: Any, indices: Any, offsets: Any, *others: Any) -> _Bags:
    """The arguments of the operator that a `.pt2` program calls."""
    scaled, mode, sparse, factors, last, padding = others
    return _Bags(
        indices, weight, offsets, None, 2, scaled, _MODES[mode], sparse, factors, last, padding
    )


def _reduced(bags: _Bags, torch: Any) -> Any:
    """The sum or mean of each bag, [bags, width]."""
    rows = torch.nn.functional.embedding(bags.input, bags.weight)
    factors = bags.per_sample_weights
    if bags.padding_idx is not None:
        counted = (bags.input != bags.padding_idx % bags.weight.shape[0]).to(rows.dtype)
        factors = counted if factors is None else counted * factors
    elif bags.mode == "mean":
        counted = torch.ones_like(bags.input, dtype=rows.dtype)
    sums = _sums(rows if factors is None else rows * factors[..., None], bags, torch)
    if bags.mode == "sum":
        return sums
    return sums / _sums(counted[..., None], bags, torch).clamp(min=1)


def _sums(rows: Any, bags: _Bags, torch: Any) -> Any:
    """Sums over [bags, entries, width], or over [entries, width] that offsets divide into bags."""
    if bags.offsets is None:
        return rows.sum(1)
    starts = bags.offsets[:-1] if bags.include_last_offset else bags.offsets
    # How many bags begin at each entry: several where all but the last of them are empty.
    begin = torch.zeros(rows.shape[0] + 1, dtype=torch.int64)
    begin = begin.index_add(0, starts, torch.ones_like(starts, dtype=torch.int64))
    bag = begin.cumsum(0)[:-1] - 1
    return rows.new_zeros(starts.shape[0], rows.shape[1]).index_add(0, bag, rows)
