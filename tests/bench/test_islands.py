"""Float islands on graphs of kernels that are written down here."""

import pytest

from bench.islands import Island, Kernel, Kind, Node, find_islands, is_lone, link, total_ms


def node(
    name: str, reads: str, *, op: str = "", kind: Kind = "other", ms: float | None = None
) -> Node:
    """A kernel that makes the tensor of its name; in integers if the name is in capitals."""
    integer = name.isupper()
    kernel = Kernel(name, op or name, kind, integer, "", (), ms)
    return Node(kernel, tuple(reads.split()), (name,), integer, integer)


def islands(*nodes: Node) -> list[tuple[str, ...]]:
    made = list(nodes)
    link(made)
    return [i.kernels for i in find_islands(made)]


def convert(name: str, reads: str, *, gives: bool) -> Node:
    """A conversion to integers or back."""
    op = "QuantizeLinear" if gives else "DequantizeLinear"
    made = node(name, reads, op=op, kind="conversion")
    made.gives = gives
    return made


def test_float_kernels_between_integers_are_one_island() -> None:
    found = islands(node("A", "x"), node("b", "A"), node("c", "b"), node("D", "c b"))
    assert found == [("b", "c")]


def test_integers_on_one_side_alone_make_no_island() -> None:
    assert islands(node("A", "x"), node("b", "A")) == []
    assert islands(node("a", "x"), node("B", "a")) == []


def test_islands_that_do_not_touch_are_told_apart() -> None:
    found = islands(node("A", "x"), node("b", "A"), node("C", "b"), node("d", "C"), node("E", "d"))
    assert found == [("b",), ("d",)]


def test_conversions_are_no_part_of_an_island_and_do_not_divide_it() -> None:
    nodes = [node("A", "x"), convert("down", "A", gives=False), node("b", "down")]
    nodes += [convert("up", "b", gives=True), convert("again", "up", gives=False)]
    nodes += [node("c", "again"), convert("end", "c", gives=True), node("D", "end")]
    assert islands(*nodes) == [("b", "c")]


def test_a_kernel_that_makes_integers_of_floats_is_an_edge_and_no_island() -> None:
    fused = node("b", "A")
    fused.gives = True
    assert islands(node("A", "x"), fused, node("C", "b")) == []
    assert islands(node("a", "x"), fused, node("c", "b"), node("D", "c")) == [("c",)]


def test_a_kernel_that_reads_what_it_makes_is_not_its_own_neighbour() -> None:
    made = [node("a", "a x"), node("b", "a a")]
    link(made)
    assert (made[0].before, made[0].after) == ([], [1, 1])
    assert made[1].before == [0, 0]


def test_the_time_of_an_island_is_that_of_its_kernels() -> None:
    made = [node("A", "x", ms=9.0), node("b", "A", ms=1.0), node("c", "b", ms=2.0), node("D", "c")]
    link(made)
    assert list(find_islands(made)) == [Island(("b", "c"), ("b", "c"), 3.0)]
    assert total_ms([]) is None
    assert total_ms(n.kernel for n in made) == 12.0


@pytest.mark.parametrize(
    ("readers", "lone"),
    [
        (("DequantizeLinear", "DequantizeLinear"), True),
        (("DequantizeLinear", "QLinearConv"), False),
        ((), False),
    ],
)
def test_a_lone_pair_is_read_by_conversions_back_alone(
    readers: tuple[str, ...], *, lone: bool
) -> None:
    made = [node("q", "x", op="QuantizeLinear")]
    made += [node(f"r{i}", "q", op=op) for i, op in enumerate(readers)]
    link(made)
    assert is_lone(made[0], made) is lone
    assert not any(is_lone(n, made) for n in made[1:])
