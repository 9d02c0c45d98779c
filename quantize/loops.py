"""Weights that go round in a Loop, taken from outside of it.

    Loop(w) { (w) -> MatMul(x, w), w }  ─▶  Loop() { MatMul(x, w of the graph) }

TensorFlow hands weights to a loop like its state and gets them back as they were. To every reader
of the graph they are then activations: no runtime packs them, and none multiplies in integers.
"""

import onnx_ir as ir

# Of a Loop's inputs, the count and the condition come first; of its body's, the iteration too.
_BEFORE_STATE = 2


def free_invariants(model: ir.Model) -> int:
    """Let bodies of loops read what never changes from outside, in place.

    Returns:
        How many values no longer go round.
    """
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Loop" and not node.domain and node.graph is not None:
            count += _free(node, node.graph)
    return count


def _free(loop: ir.Node, graph: ir.Graph | ir.Function) -> int:
    body = loop.attributes["body"].as_graph()
    states = range(len(loop.inputs) - _BEFORE_STATE)
    fixed = [i for i in states if _is_invariant(loop, body, i)]
    if not fixed:
        return 0
    kept = [i for i in range(len(loop.outputs)) if i not in fixed]
    inputs = [v for i, v in enumerate(loop.inputs) if i - _BEFORE_STATE not in fixed]
    outputs = [loop.outputs[i] for i in kept]
    for i in reversed(fixed):
        value = loop.inputs[_BEFORE_STATE + i]
        assert value is not None
        body.outputs.pop(1 + i)
        body.inputs.pop(_BEFORE_STATE + i).replace_all_uses_with(value)
        loop.outputs[i].replace_all_uses_with(value)
    loop.attributes.pop("body")
    fresh = ir.Node(
        "", "Loop", inputs, [ir.AttrGraph("body", body)], num_outputs=len(kept), name=loop.name
    )
    graph.insert_before(loop, fresh)
    for old, new in zip(outputs, fresh.outputs, strict=True):
        name, kind, shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, new.type, new.shape = name, kind, shape
    graph.remove(loop, safe=True)
    return len(fixed)


def _is_invariant(loop: ir.Node, body: ir.Graph, index: int) -> bool:
    """Whether a state leaves every iteration as it came, and nobody outside needs its last value.

    A graph output has to have a maker of its own, so a loop that makes one keeps it.
    """
    given, returned = body.inputs[_BEFORE_STATE + index], body.outputs[1 + index]
    maker = returned.producer()
    if maker is not None and maker.op_type == "Identity" and not maker.domain:
        returned = maker.inputs[0] or returned
    returns = sum(v is given for v in body.outputs)
    alone = returns == (body.outputs[1 + index] is given)
    return returned is given and alone and not loop.outputs[index].is_graph_output()
