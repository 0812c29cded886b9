"""Toy graphs for the tests of the passes: traced, written by hand, and executed with a toy store.

`trace` makes a TrainingGraph of a function, as the backend does. `Sketch` builds one node by node.
`run_step` executes forward and backward. `ToyStore` replaces the runtime: it overwrites released
values, so that a reader behind the release changes the result.
"""

from __future__ import annotations

import copy
import operator
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from fxoffload.cost import CostModel, DeviceSpeed
from fxoffload.graph import TrainingGraph, get_saved, get_tensor, is_view
from fxoffload.hardware import Hardware
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT
from fxoffload.passes import PassOptions
from fxoffload.planner.link import Link
from fxoffload.torch_internals import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    compile_with_aot,
)

aten = torch.ops.aten
LINK = Link(write_bytes_per_second=1e9, read_bytes_per_second=1e9, latency_seconds=0.0)

# --- graphs of functions ------------------------------------------------------------------------


def trace(function: Callable[..., Any], *inputs: Any, dynamic: bool | None = None) -> TrainingGraph:
    """The partitioned graphs of one call, through Dynamo and AOTAutograd, as the backend's."""
    found: list[TrainingGraph] = []

    def keep(partition: PartitionFunction, num_outputs: int, static: Sequence[int]) -> Graphs:
        forward, backward = partition(None)
        names = [node.name for node in forward.graph.find_nodes(op="placeholder")]
        statics = frozenset(names[index] for index in static)
        found.append(TrainingGraph(forward, backward, num_outputs, statics))
        return forward, backward

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, inputs, OffloadPartitioner(keep, "trace"))

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    (graph,) = found
    return graph


def trace_dynamic(function: Callable[..., Any], rows: int = 8) -> TrainingGraph:
    """`trace` with a symbolic number of rows, traced at `rows`."""
    x = make_input(rows)
    torch._dynamo.mark_dynamic(x, 0)
    return trace(function, x)


def find_symbols(graph: TrainingGraph) -> list[str]:
    """Names of the symbols that placeholders of the forward bind."""
    values = [n.meta["val"] for n in graph.forward.graph.find_nodes(op="placeholder")]
    return [str(value) for value in values if isinstance(value, torch.SymInt)]


def copy_graph(graph: TrainingGraph) -> TrainingGraph:
    """An independent copy; fake tensors are shared, as aliasing is told by their identity."""
    return copy.deepcopy(graph)


def make_weight(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return (torch.randn(rows, columns, generator=generator) / rows**0.5).requires_grad_()


def make_input(rows: int = 16, columns: int = 16) -> Tensor:
    return torch.linspace(-1, 1, rows * columns).view(rows, columns)


# As the option of this name takes it.
HARDWARE = {
    "flops_per_second": "1TFLOP/s",
    "memory_bytes_per_second": "50GB/s",
    "memory_bytes": "8GiB",
    "drive_write_bytes_per_second": "2GB/s",
    "drive_read_bytes_per_second": "3GB/s",
    "host_link_bytes_per_second": "20GB/s",
}


def make_hardware(
    *, flops: float, memory: float, transfers: float, memory_bytes: str = "1GiB"
) -> Hardware:
    """flops, memory: per second. transfers: bytes per second of drive and link, each way."""
    ways = ("drive_write", "drive_read", "host_link")
    return Hardware(
        flops_per_second=flops,
        memory_bytes_per_second=memory,
        memory_bytes=memory_bytes,
        **{f"{way}_bytes_per_second": transfers for way in ways},
    )


WEIGHT = make_weight(16, 16)
WIDE = make_weight(16, 48)


def linear_relu(x: Tensor) -> Tensor:
    return (x @ WEIGHT).relu().sum()


def qkv(x: Tensor) -> Tensor:
    """Three chunks of one product, each needed by the backward."""
    q, k, v = (x @ WIDE).chunk(3, -1)
    return (q * k * v).sum()


def square_transpose(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (h @ h.t() @ WEIGHT).sum()


def overlapping(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (h[:, :10] * h[:, 6:]).sum()


def strided(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (h[:, ::2] * h[:, 1::2]).sum()


def expanded(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    row = (x[0] @ WEIGHT).expand(16, 16)
    return (row * h).sum()


def splits(x: Tensor) -> Tensor:
    a, b = (x @ WEIGHT).split([4, 12], -1)
    return (a @ b[:4]).sin().sum()


def sdpa(x: Tensor) -> Tensor:
    q, k, v = (part.reshape(1, 2, 16, 8) for part in (x @ WIDE).chunk(3, -1))
    out = functional.scaled_dot_product_attention(q, k, v)
    return (out.reshape(16, 16) @ WEIGHT).sum()


def bool_mask(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (h.masked_fill(h > h.roll(1, 0), 0.5) @ WEIGHT).sum()


def int_indices(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (h.gather(1, h.argsort(1)) @ WEIGHT).sum()


def half(x: Tensor) -> Tensor:
    h = (x @ WEIGHT).bfloat16()
    return (h @ h).float().sum()


def complex_view(x: Tensor) -> Tensor:
    """A complex and a real view of one storage."""
    h = x @ WEIGHT
    z = torch.view_as_complex(h.view(16, 8, 2))
    return torch.view_as_real(z * z).sum() + (h @ WEIGHT).sum()


def small_window(x: Tensor) -> Tensor:
    """Two columns of a product are all that the backward needs of it."""
    h = x @ WEIGHT
    return (h[:, :1] * h[:, 1:2]).sum()


def several_readers(x: Tensor) -> Tensor:
    h = (x @ WEIGHT).tanh()
    return (h @ WEIGHT).sin().sum() + (h @ h @ WEIGHT).sum()


def deep(x: Tensor) -> Tensor:
    for _ in range(4):
        x = (x @ WEIGHT).tanh()
    return x.sum()


GRAPHS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        qkv, square_transpose, overlapping, strided, expanded, splits, sdpa, bool_mask,
        int_indices, half, complex_view, small_window, several_readers, deep,
    )
}  # fmt: skip

# --- graphs by hand -----------------------------------------------------------------------------


class Half:
    """One graph, written node by node; `meta["val"]` is what the op returns for fake tensors."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.graph = fx.Graph()

    def input(self, name: str, value: Any) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.mode.from_tensor(value) if isinstance(value, Tensor) else value
        return node

    def call(self, target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        with self.mode:
            values = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def finish(self, results: Sequence[Any]) -> fx.GraphModule:
        self.graph.output(tuple(results))
        return fx.GraphModule({}, self.graph)


class Sketch:
    """A TrainingGraph by hand: write `forward`, call `save`, write `backward`, call `finish`."""

    def __init__(self) -> None:
        mode = FakeTensorMode()
        self.forward, self.backward = Half(mode), Half(mode)
        self._saved: list[fx.Node] = []

    def begin(self, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
        """An activation of that shape: the sine of the input."""
        x = self.forward.input("x", torch.empty(shape, dtype=dtype))
        return self.forward.call(aten.sin.default, x)

    def save(self, *nodes: fx.Node) -> list[fx.Node]:
        """Save forward nodes; returns their placeholders in the backward."""
        self._saved += nodes
        placeholders: list[fx.Node] = []
        for node in nodes:
            placeholder = self.backward.graph.placeholder(node.name)
            placeholder.meta["val"] = node.meta["val"]
            placeholders.append(placeholder)
        return placeholders

    def finish_saving(self, node: fx.Node, *outputs: fx.Node) -> TrainingGraph:
        """Save `node` alone; the backward reads it once."""
        (saved,) = self.save(node)
        return self.finish(outputs, [self.backward.call(aten.exp.default, saved)])

    def finish(
        self, outputs: Sequence[Any], gradients: Sequence[Any], static: Sequence[str] = ()
    ) -> TrainingGraph:
        forward = self.forward.finish([*outputs, *self._saved])
        return TrainingGraph(
            forward, self.backward.finish(gradients), len(outputs), frozenset(static)
        )


def make_chain(num_layers: int = 4, rows: int = 16) -> TrainingGraph:
    """Layers of sin, each saved and read by the backward in the opposite order."""
    sketch = Sketch()
    node = sketch.forward.input("x", torch.empty(rows, 16))
    layers: list[fx.Node] = []
    for index in range(num_layers):
        node = sketch.forward.call(aten.sin.default, node, name=f"layer{index}")
        layers.append(node)
    out = sketch.forward.call(aten.cos.default, node, name="out")
    saved = sketch.save(*layers)
    gradient = sketch.backward.input("tangents_1", torch.empty(rows, 16))
    for index, layer in reversed(list(enumerate(saved))):
        gradient = sketch.backward.call(aten.mul.Tensor, gradient, layer, name=f"grad{index}")
    return sketch.finish([out], [gradient])


def make_masked(*, saves_mask: bool) -> TrainingGraph:
    """A relu between products, whose backward reads a mask: a saved one, or one it computes."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    mm = sketch.forward.call(aten.mm.default, x, x, name="mm")
    relu = sketch.forward.call(aten.relu.default, mm, name="relu")
    out = sketch.forward.call(aten.mm.default, relu, x, name="out")
    if saves_mask:
        mask = sketch.forward.call(aten.le.Scalar, relu, 0, name="mask")
        saved, mask = sketch.save(relu, mask)
    else:
        (saved,) = sketch.save(relu)
        mask = sketch.backward.call(aten.le.Scalar, saved, 0, name="mask")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.masked_fill.Scalar, tangent, mask, 0, name="fill")
    product = sketch.backward.call(aten.mm.default, saved, tangent, name="product")
    return sketch.finish([out], [product, gradient])


# --- cost ---------------------------------------------------------------------------------------

CPU_SPEED = DeviceSpeed(flops_per_second=1e11, memory_bytes_per_second=1e10)


@dataclass(frozen=True, slots=True)
class UniformCost(CostModel):
    """Each computing node takes one second, whatever it does."""

    def node_seconds(
        self, node: fx.Node, traffic_bytes: int, *, mask_seconds: float = 0.0
    ) -> float:
        return 0.0 if CostModel.node_seconds(self, node, traffic_bytes=1) == 0.0 else 1.0


def make_cost(seconds: float, nbytes: int = 1024, *, latency: float = 0.0) -> UniformCost:
    """One second a node, and `seconds` for a transfer of `nbytes` either way."""
    speed = nbytes / seconds if seconds else 1e30
    link = Link(speed, speed, latency)
    return UniformCost(links={"nvme": link, "host": link}, speed=CPU_SPEED)


NBYTES = 16 * 16 * 4  # Of what each layer of make_chain saves.
# Everything moves that may.
OPTIONS = PassOptions(
    cost=make_cost(0.1), store="store", budget_bytes="min", min_bytes=1, fuses=False
)


def make_viewed(*views: Callable[[Sketch, fx.Node], fx.Node]) -> TrainingGraph:
    """One 8 x 16 activation `a`, saved only through `views`, each read once by the backward."""
    sketch = Sketch()
    a = sketch.begin(8, 16)
    b = sketch.forward.call(aten.cos.default, a)
    placeholders = sketch.save(*[view(sketch, a) for view in views])
    tangent = sketch.backward.input("tangents_1", torch.empty(8, 16))
    gradients = [sketch.backward.call(aten.exp.default, p) for p in placeholders]
    return sketch.finish([b], [tangent, *gradients])


def itself(sketch: Sketch, a: fx.Node) -> fx.Node:
    return a


# --- execution ----------------------------------------------------------------------------------


@dataclass
class ToyStore:
    """The four ops on clones. What was released holds bytes that nobody would compute."""

    values: dict[int, Tensor] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)
    prefetched: set[int] = field(default_factory=set)
    owned: set[int] = field(default_factory=set)

    def offload(self, x: Tensor, store: str, name: str, tier: str, owned: bool, dup: int) -> Tensor:
        ticket = len(self.values)
        self.values[ticket] = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).copy_(x)
        if owned:
            self.owned.add(ticket)
        return torch.tensor([ticket])

    def release(self, ticket: Tensor, x: Tensor) -> None:
        key = int(ticket)
        assert key not in self.released
        assert torch.equal(self.values[key], x), "changed between offload and release"
        self.released.add(key)
        if key in self.owned:  # The caller goes on to use what is its own.
            spoil(x)

    def prefetch(self, ticket: Tensor) -> None:
        key = int(ticket)
        assert key in self.released
        assert key not in self.prefetched
        self.prefetched.add(key)

    def wait(
        self,
        ticket: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        owned: bool = True,
    ) -> Tensor:
        assert int(ticket) in self.prefetched, "waits before its prefetch"
        value = self.values[int(ticket)]
        y = torch.empty_strided(size, stride, dtype=dtype, device=device)
        assert (y.size(), y.dtype, y.device) == (value.size(), value.dtype, value.device)
        # The stride of a dimension of size 1 means nothing, and kernels choose it freely.
        strides = zip(y.size(), y.stride(), value.stride(), strict=True)
        assert all(mine == other for size, mine, other in strides if size != 1)
        return y.copy_(value)


def spoil(x: Tensor) -> None:
    """Overwrite the storage of `x`: NaN in floats, -1 in ints, the opposite in bools."""
    if x.dtype == torch.bool:
        x.logical_not_()
    else:
        torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).fill_(0xFF)


class ToyInterpreter(fx.Interpreter):
    """Runs one half node by node, its four ops on a ToyStore."""

    def __init__(self, module: fx.GraphModule, store: ToyStore) -> None:
        super().__init__(module)
        self.kernels = {
            OFFLOAD: store.offload,
            RELEASE: store.release,
            PREFETCH: store.prefetch,
            WAIT: store.wait,
        }

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(self.kernels.get(target, target), args, kwargs)


def run_step(
    graph: TrainingGraph, *, sizes: Mapping[str, int] | None = None
) -> tuple[list[Any], list[Any]]:
    """Outputs and gradients of one step on fixed inputs; `sizes` gives symbols by name."""
    store = ToyStore()
    inputs = graph.forward.graph.find_nodes(op="placeholder")
    results = ToyInterpreter(graph.forward, store).run(*[make_value(n, sizes) for n in inputs])
    names = [node.name for node in get_saved(graph)]
    saved = dict(zip(names, results[graph.num_outputs :], strict=True))
    outputs = [x.clone() if isinstance(x, Tensor) else x for x in results[: graph.num_outputs]]
    placeholders = graph.backward.graph.find_nodes(op="placeholder")
    arguments = [saved[n.name] if n.name in saved else make_value(n, sizes) for n in placeholders]
    gradients = ToyInterpreter(graph.backward, store).run(*arguments)
    return outputs, list(gradients)


def make_value(node: fx.Node, sizes: Mapping[str, int] | None = None) -> Any:
    """A real value of the kind that a placeholder announces, the same for the same name."""

    def resolve(value: int | torch.SymInt) -> int:
        if isinstance(value, int):
            return value
        if sizes is None:
            return value.node.hint
        return int(value.node.expr.subs({s: sizes[s.name] for s in value.node.expr.free_symbols}))

    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return resolve(value)
    size, stride = [resolve(s) for s in value.size()], [resolve(s) for s in value.stride()]
    result = torch.empty_strided(size, stride, dtype=value.dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(node.name.encode()))
    numbers = torch.randn(size, generator=generator, dtype=torch.float32)
    return result.copy_(numbers if value.dtype.is_floating_point else numbers > 0)


def assert_same_step(
    before: TrainingGraph, after: TrainingGraph, *, sizes: Mapping[str, int] | None = None
) -> None:
    """Both graphs give the same bits, whatever happens to memory that may not be read."""
    for kind, expected, actual in zip(
        ("output", "gradient"),
        run_step(before, sizes=sizes),
        run_step(after, sizes=sizes),
        strict=True,
    ):
        for index, (a, b) in enumerate(zip(expected, actual, strict=True)):
            if not isinstance(a, Tensor):
                assert a == b
                continue
            assert not a.isnan().any(), "a toy graph must compute numbers"
            assert torch.equal(a, b), f"{kind} {index} differs"


def assert_matched(graph: TrainingGraph) -> None:
    """The saved tensors and the backward's placeholders are the same names in the same order."""
    saved = [node.name for node in get_saved(graph) if get_tensor(node) is not None]
    placeholders = graph.backward.graph.find_nodes(op="placeholder")
    received = [node.name for node in placeholders if node.name in saved]
    assert received == saved
    rest = [n.name for n in placeholders if n.name not in {s.name for s in get_saved(graph)}]
    assert all(name.startswith("tangents") for name in rest)


# --- looking at graphs --------------------------------------------------------------------------


def find_by_target(graph: fx.Graph, target: Any) -> fx.Node:
    (node,) = graph.find_nodes(op="call_function", target=target)
    return node


def describe(graph: fx.Graph) -> str:
    """One line for each node: its name, what it calls, and the names of its arguments."""
    lines: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name} = input")
        elif node.op == "output":
            lines.append(f"return {node.args[0]}")
        else:
            args = ", ".join(str(arg) for arg in node.args)
            lines.append(f"{node.name} = {node.target}({args})")
    return "\n".join(lines)


def position(graph: fx.Graph, name: str) -> int:
    return [node.name for node in graph.nodes].index(name)


def names_of(graph: fx.Graph, target: Any = None) -> list[str]:
    """Names of the calls in order: all of them, or those of one target."""
    return [
        node.name
        for node in graph.nodes
        if node.op == "call_function" and (target is None or node.target is target)
    ]


# --- random graphs ------------------------------------------------------------------------------

_VIEWS: tuple[tuple[Any, ...], ...] = (
    (aten.t.default,),
    (aten.slice.Tensor, 0, 0, 2),
    (aten.slice.Tensor, 1, 1, 9),
    (aten.slice.Tensor, 1, 0, 9, 2),
    (aten.unsqueeze.default, 0),
)


@st.composite
def random_graphs(draw: st.DrawFn) -> TrainingGraph:
    """Small programs with views, several readers, items of tuples, and several dtypes."""
    sketch = Sketch()
    nodes = [sketch.forward.input("x", torch.empty(4, 6))]
    for _ in range(draw(st.integers(1, 10))):
        nodes.append(_draw_call(draw, sketch.forward, draw(st.sampled_from(nodes))))
    out = sketch.forward.call(aten.clone.default, nodes[-1])
    outputs = [out, *draw(st.lists(st.sampled_from(nodes), max_size=1))]
    saved = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=6, unique=True))
    readable = sketch.save(*saved)
    gradients = [sketch.backward.input("tangents_1", torch.empty(4, 6))]
    for _ in range(draw(st.integers(1, 10))):
        node = _draw_call(draw, sketch.backward, draw(st.sampled_from([*readable, *gradients])))
        (readable if is_view(node) else gradients).append(node)
    return sketch.finish(outputs, gradients)


def _draw_call(draw: st.DrawFn, half: Half, source: fx.Node) -> fx.Node:
    """A view or a reader of `source`, whatever its shape and dtype."""
    tensor = source.meta["val"]
    kinds = ["view", "read", "twice"]
    if tensor.dtype == torch.float32:
        kinds += ["compare", "sort", "split"]
    kind = draw(st.sampled_from(kinds))
    if kind == "view":
        view, *args = draw(st.sampled_from(_VIEWS))
        if tensor.dim() == 2:
            return half.call(view, source, *args)
        return half.call(aten.select.int, source, 0, 0)
    if kind == "twice":
        return half.call(
            aten.bitwise_xor.Tensor if tensor.dtype != torch.float32 else aten.mul.Tensor,
            source,
            source,
        )
    if kind == "compare":
        return half.call(aten.gt.Scalar, source, 0)
    if kind == "sort":
        return half.call(operator.getitem, half.call(aten.sort.default, source), 1)
    if kind == "split":
        return half.call(operator.getitem, half.call(aten.split.Tensor, source, 1), 0)
    return half.call(
        aten.sin.default if tensor.dtype == torch.float32 else aten.bitwise_not.default, source
    )


LAYOUTS = ("coo", "csr", "csc", "bsr", "bsc", "mkldnn", "nested", "jagged")


def make_layout(name: str) -> Tensor:
    """A tensor in a layout that has no strides, or no sizes, to ask for."""
    dense = torch.ones(4, 4)
    makers: dict[str, Callable[[], Tensor]] = {
        "coo": dense.to_sparse,
        "csr": dense.to_sparse_csr,
        "csc": dense.to_sparse_csc,
        "bsr": lambda: dense.to_sparse_bsr((2, 2)),
        "bsc": lambda: dense.to_sparse_bsc((2, 2)),
        "mkldnn": dense.to_mkldnn,
        "nested": lambda: torch.nested.nested_tensor([dense, dense]),
        "jagged": lambda: torch.nested.nested_tensor([dense, dense], layout=torch.jagged),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sparse and nested tensors are in beta.
        return makers[name]()
