"""A computation graph for TensorBoard's graph tab, where "/" in a name opens a scope."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex
from typing import Any

from etascope.errors import StudyError, UsageError
from etascope.inspection.graph import Graph, Node


def write_tensorboard_graph(graph: Graph, directory: str | os.PathLike[str]) -> Path:
    """Write a graph as a TensorBoard event file.

    Args:
        graph: from `etascope.graph`.
        directory: the log directory; show it with `tensorboard --logdir DIRECTORY`.

    Returns:
        The log directory.

    Raises:
        UsageError: if tensorboard is not installed.
        StudyError: if the file cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise UsageError(
            "event files need tensorboard; install it with: pip install 'etascope[tensorboard]'"
        ) from None
    target = Path(directory)
    try:
        writer = EventFileWriter(str(target), filename_suffix=f".{token_hex(8)}")
        try:
            writer.add_event(Event(graph_def=graph_def(graph).SerializeToString()))
        finally:
            writer.close()
    except OSError as error:
        raise StudyError(
            f"cannot write event files to {target}: {error.strerror or error}; name another folder"
        ) from error
    return target


def graph_def(graph: Graph) -> Any:
    """The graph as TensorFlow's protocol buffer."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.versions_pb2 import VersionDef

    return GraphDef(
        node=[_node_def(node) for node in graph.nodes], versions=VersionDef(producer=22)
    )


def _node_def(node: Node) -> Any:
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    def shape(sizes: tuple[int, ...]) -> Any:
        return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])

    def words(text: str) -> Any:
        return AttrValue(s=text.encode())

    shapes = AttrValue.ListValue(shape=[shape(tensor.shape) for tensor in node.outputs])
    attributes = {"_output_shapes": AttrValue(list=shapes)}
    if node.outputs:
        attributes["dtype"] = words(", ".join(dict.fromkeys(t.dtype for t in node.outputs)))
    if node.parameters:
        named = (f"{p.name} {list(p.shape)}" for p in node.parameters)
        attributes["parameters"] = words(", ".join(named))
    if node.flops:
        attributes["flops"] = AttrValue(i=node.flops)
    if node.operators:
        attributes["operators"] = words(", ".join(node.operators))
    if node.note:
        attributes["note"] = words(node.note)
    sources = dict.fromkeys(edge.source for edge in node.inputs)
    return NodeDef(name=node.name, op=node.op, input=sources, attr=attributes)
