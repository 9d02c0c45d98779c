"""Changes to a graph that more than one kind of layer needs: names, constants, replaced nodes."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.quantizers.reading import constant_of
from quantize.ranges import Range


class Editor:
    """A graph while it is rewritten, with its names, so that none is given twice."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.nodes = {str(n.name): n for n in model.graph.all_nodes()}
        self.values = {str(v.name): v for n in model.graph for v in n.outputs}
        self.values |= {str(v.name): v for v in model.graph.inputs}
        self.taken = {
            str(v.name) for g in (self.graph, *self.graph.subgraphs()) for v in _values(g)
        }
        self.taken |= set(self.nodes)
        self.stored: dict[str, list[ir.Value]] = {}

    def free(self, name: str) -> str:
        """`name`, with a number behind it where the model has something of that name."""
        free, count = name, 1
        while free in self.taken:
            free, count = f"{name}_{count}", count + 1
        self.taken.add(free)
        return free

    def constant(self, name: str, values: NDArray[np.generic]) -> ir.Value:
        """A new initializer of the main graph."""
        free = self.free(name)
        tensor = ir.Tensor(values, name=free)
        value = ir.Value(
            name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def codes(self, node: ir.Node, name: str, values: NDArray[np.int8]) -> ir.Value:
        """The constant of a layer's codes: that of another layer with the same weights and codes.

        Scales and zero points are never shared: see `quantize.quantizers.native`. Nor is anything
        with branches and loops, where `bench.runtimes.onnxruntime` would not tell readers apart.

        Args:
            node: The layer, which still reads its float weights.
            name: Of a new constant.
            values: The codes as they are stored.
        """
        weights = node.inputs[1]
        assert weights is not None
        if node.graph is not self.graph:
            return self.constant(name, values)
        others = self.stored.setdefault(str(weights.name), [])
        for value in others:
            assert value.const_value is not None
            if np.array_equal(value.const_value.numpy(), values):
                return value
        others.append(self.constant(name, values))
        return others[-1]

    def scale(self, name: str, chosen: Range) -> tuple[ir.Value, ir.Value]:
        """New constants that hold the scale and the zero point of a tensor's range."""
        return (
            self.constant(f"{name}_scale", np.asarray(chosen.scale, np.float32)),
            self.constant(f"{name}_zero_point", np.asarray(chosen.zero_point, np.uint8)),
        )

    def pair_behind(self, value: ir.Value, chosen: Range) -> tuple[ir.Node, ir.Node]:
        """A QuantizeLinear and a DequantizeLinear of a tensor; nothing reads them yet."""
        name = str(value.name)
        quantize = ir.node(
            "QuantizeLinear",
            [value, *self.scale(name, chosen)],
            name=self.free(f"{name}_quantize"),
        )
        quantize.outputs[0].name = self.free(f"{name}_quantized")
        # Q and DQ may share their constants; pairs of different tensors may not.
        back = ir.node(
            "DequantizeLinear",
            [quantize.outputs[0], *quantize.inputs[1:]],
            name=self.free(f"{name}_dequantize"),
        )
        back.outputs[0].name = self.free(f"{name}_dequantized")
        self.insert_after(value.producer(), [quantize, back])
        return quantize, back

    def move_output(self, value: ir.Value, after: ir.Value) -> None:
        """If `value` is a graph output, let `after` be it, under the same name."""
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                name = str(value.name)
                after.type, after.shape = value.type, value.shape
                self.graph.outputs[i] = after
                value.name = self.free(f"{name}_float")
                after.name = name

    def integer_bias(
        self, node: ir.Node, values: NDArray[np.int32], units: NDArray[np.float32]
    ) -> None:
        """Give a Conv or Gemm a bias in the units that its products add up in, per channel."""
        name = f"{node.name}_bias"
        pair = ir.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}_quantized", values),
                self.constant(f"{name}_scale", units),
                self.constant(f"{name}_zero_point", np.zeros(len(units), np.int32)),
            ],
            attributes={"axis": 0},
            name=name,
        )
        self.insert_pair(node, pair)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, pair.outputs[0])

    def insert_pair(self, node: ir.Node, pair: ir.Node) -> None:
        """Put the DequantizeLinear of a constant before its reader."""
        pair.outputs[0].name = self.free(f"{pair.name}_dequantized")
        pair.name = self.free(f"{pair.name}_dequantize")
        self.graph.insert_before(node, pair)

    def insert_after(self, producer: ir.Node | None, nodes: list[ir.Node]) -> None:
        """Put nodes behind one, or before all others where it is None."""
        if producer is not None:
            self.graph.insert_after(producer, nodes)
            return
        first = next(iter(self.graph))
        self.graph.insert_before(first, nodes)

    def replace(self, node: ir.Node, after: ir.Value) -> None:
        """Remove a node; what read its output reads `after`, which takes over the name."""
        was = node.outputs[0]
        name, shape, kind = was.name, was.shape, was.type
        was.replace_all_uses_with(after, replace_graph_outputs=True)
        was.name = f"{name}_was"
        after.name, after.shape, after.type = name, shape, kind
        self.values[str(name)] = after
        (node.graph or self.graph).remove(node, safe=True)

    def shift_following_add(self, node: ir.Node, shift: NDArray[np.float64]) -> None:
        """Put a MatMul's bias shift into the constant of the Add behind it, where there is one."""
        place = self.added_constant(node, len(shift))
        if place is not None and np.any(shift):
            add, i, value = place
            assert value.const_value is not None
            moved = (value.const_value.numpy() + shift).astype(np.float32)
            add.replace_input_with(i, self.constant(f"{value.name}_{node.name}", moved))

    def keep_add_apart(self, node: ir.Node, channels: int) -> None:
        """Give the bias that is added to a MatMul two axes, so that ONNX Runtime leaves the Add.

        With one axis, and shapes that are known, it makes Reshape, Gemm and Reshape of the two
        before it looks for Q/DQ pairs (`matmul_add_fusion.cc`); the Gemm's bias is float, so it
        runs in float, on weights that are dequantized in every run.
        """
        place, data = self.added_constant(node, channels), node.inputs[0]
        rank = len(data.shape) if data is not None and data.shape is not None else 0
        if place is not None and rank > 2:
            add, i, value = place
            assert value.const_value is not None
            if len(value.const_value.shape) == 1:
                bias = value.const_value.numpy().reshape(1, -1)
                add.replace_input_with(i, self.constant(f"{value.name}_of_{node.name}", bias))

    @staticmethod
    def added_constant(node: ir.Node, channels: int) -> tuple[ir.Node, int, ir.Value] | None:
        """The Add that alone reads a MatMul and adds one value per channel; and that constant.

        Where there is none, a shift has no place: an Add of its own would be one more pass over
        the output, which costs more than a mean error is worth.
        """
        uses = node.outputs[0].uses()
        add = next(iter(uses)).node if len(uses) == 1 else None
        if add is None or add.op_type != "Add":
            return None
        for i, value in enumerate(add.inputs):
            if value is not None and value.is_initializer() and value.const_value is not None:
                fits = value.const_value.shape.numpy()[-1:] == (channels,)
                return (add, i, value) if fits else None
        return None

    def fold_gemm_factors(self, node: ir.Node) -> None:
        """Move a Gemm's alpha and beta into its constants, since the INT8 kernel takes neither."""
        alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
        beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
        if alpha != 1.0:
            scaled = (constant_of(node.inputs[1]) * np.float32(alpha)).astype(np.float32)
            node.replace_input_with(1, self.constant(f"{node.name}_scaled", scaled))
        if beta != 1.0 and len(node.inputs) > 2 and node.inputs[2] is not None:
            scaled = (constant_of(node.inputs[2]) * np.float32(beta)).astype(np.float32)
            node.replace_input_with(2, self.constant(f"{node.name}_shifted", scaled))
        for name in ("alpha", "beta"):
            if name in node.attributes:
                del node.attributes[name]

    def drop_unused(self) -> None:
        """Remove constants that nothing reads any more, those of branches and loops too."""
        for graph in (self.graph, *self.graph.subgraphs()):
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output():
                    del graph.initializers[name]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
