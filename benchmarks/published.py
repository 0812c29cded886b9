"""Holds simulations against numbers that others have published, and forecasts Llamas.

    python -m benchmarks.published

Everything is simulated: nothing runs, nothing is timed, and models have no memory. The setup that
SSDTrain published is in `python -m benchmarks.limits --layerwise`.

    --llama    what hides on named hardware, see llama_forecast.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from benchmarks import llama_forecast
from benchmarks.fresh_process import Record
from benchmarks.layerwise import find_peak, leave_out_gradients
from benchmarks.published_models import (
    add_up,
    configure_gpt,
    configure_llama,
    configure_qwen,
    extrapolate,
    find_layer_input_bytes,
    find_product_bytes,
    trace_two,
)
from benchmarks.runner import Arguments, Benchmark, Column, Show, Table, make_table, option
from fxoffload.planner.step import Step

GITHUB = "https://github.com"
# Of an H200, less two bytes for weights, two for gradients and four for AdamW's states in bfloat16
# of each of 14.8e9 parameters, an eighth of which is on each of 8 ranks.
QWEN_ACTIVATION_BYTES = 141e9 - 8 * 14.8e9 / 8


@dataclass(frozen=True, slots=True)
class PublishedArguments(Arguments):
    """The command line."""

    llama: bool = option(False, "forecast Llamas on named hardware instead")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published number beside the simulated one, both in `unit`.

    differs: what is not the same in the two.
    """

    source: str
    what: str
    unit: str
    published: float
    simulated: float
    differs: str = ""


def measure(arguments: PublishedArguments, show: Show) -> Record:
    """A row for each number, or for each Llama on each device."""
    if arguments.llama:
        return {"forecasts": llama_forecast.forecast_all(show)}
    rows: list[Record] = []
    for compare in (compare_layer_inputs, compare_formula, compare_policies, compare_crossover):
        show(compare.__name__)
        rows += map(asdict, compare())
    return {"rows": rows}


def compare_layer_inputs() -> Iterator[Comparison]:
    """What is freed where the input of each checkpointed layer moves."""
    small, large = configure_qwen(1024, 3072, 16), configure_qwen(4096, 12288, 32)

    def find(length: int, layers: int, *, wide: bool = False) -> float:
        steps = trace_two(large if wide else small, 1, length, checkpoints=True)
        return extrapolate(steps, find_layer_input_bytes, layers)

    source = f"{GITHUB}/huggingface/transformers/pull/48444"
    what = "freed, Qwen3 of 8 layers x 1024, 8,192 tokens"
    yield Comparison(source, what, "MiB", 128.0, find(8192, 8) / 2**20)
    what = "layer inputs, Qwen3-8B, 128k tokens"
    yield Comparison(source, what, "GiB", 36.0, find(2**17, 36, wide=True) / 2**30)
    source = f"{GITHUB}/huggingface/accelerate/pull/4175"
    what = "layer inputs, Qwen3-0.6B, 1,048,576 tokens on 8 ranks"
    found = find(2**17, 28) / 1e9
    yield Comparison(source, what, "GB", 7.5, found)
    differs = "measured, at a peak that also has what a layer recomputes"
    yield Comparison(source, f"{what}: fall of the peak", "GB", 7.1, found, differs)


def compare_formula() -> Iterator[Comparison]:
    """Bytes that a layer saves: s b h (34 + 5 a s / h), and 34 s b h without its attention."""
    source = "https://arxiv.org/abs/2205.05198"
    for hidden, heads, length in ((4096, 32, 1024), (12288, 96, 2048)):
        unfused = configure_gpt(hidden, heads, length, attention="eager", dropout=0.1)
        fused = configure_gpt(hidden, heads, length, attention="sdpa", dropout=0.0)
        full = 34 + 5 * heads * length / hidden
        masks = "fused attention; no dropout, whose masks are 2 of 34"
        for configure, published, kind, differs in (
            (unfused, full, "all saved", ""),
            (fused, 34.0, "attention recomputed", masks),
        ):
            two, three = map(add_up, trace_two(configure, 1, length))
            what = f"a layer of GPT, h {hidden}, a {heads}, s {length}: {kind}"
            found = (three - two) / (length * hidden)
            yield Comparison(source, what, "s b h", published, found, differs)


def compare_policies() -> Iterator[Comparison]:
    """Llama 3 8B: what is saved of each product, against checkpoints of each layer."""
    source = f"{GITHUB}/pytorch/torchtitan/pull/3429"
    configure = configure_llama(4096, 14336, 32, vocabulary=128256)
    own, layers = (trace_two(configure, 1, 8192, checkpoints=each) for each in (False, True))

    def find_seconds(step: Step) -> float:
        return step.compute_seconds

    freed = extrapolate(own, find_product_bytes, 32) - extrapolate(layers, find_product_bytes, 32)
    what = "Llama 3 8B, FSDP on 8 ranks: memory, SAC less full recomputation"
    differs = "batch 1 x 8192 assumed"
    yield Comparison(source, what, "GiB", 52.44 - 32.07, freed / 2**30, differs)
    slower = extrapolate(own, find_seconds, 32) / extrapolate(layers, find_seconds, 32)
    what = "Llama 3 8B, FSDP on 8 ranks: throughput, full recomputation over SAC"
    differs = "own partition in place of SAC; no collectives, no optimizer"
    yield Comparison(source, what, "", 7006 / 7890, slower, differs)


def compare_crossover() -> Iterator[Comparison]:
    """The longest sequences that fit with nothing moved: 3,072 do, 3,328 do not."""
    source = f"{GITHUB}/deepspeedai/DeepSpeed/pull/8255"
    configure = configure_qwen(5120, 17408, 40)
    lengths = (3072, 3328)
    low, high = (
        extrapolate(trace_two(configure, 4, length), find_activation_bytes, 40)
        for length in lengths
    )
    slope = (high - low) / (lengths[1] - lengths[0])
    longest = lengths[0] + (QWEN_ACTIVATION_BYTES - low) / slope
    what = "Qwen3-14B, batch 4, ZeRO-3 on 8 H200: longest sequence, less than"
    differs = "no gathered weights, no buffers of collectives, no fragmentation"
    yield Comparison(source, what, "tokens", lengths[1], longest, differs)


def find_activation_bytes(step: Step) -> int:
    """The peak with nothing moved and without gradients of parameters, which ranks share."""
    return find_peak(leave_out_gradients(step))


def find_deviation(row: Record) -> str:
    """The simulated number against the published one."""
    return f"{row['simulated'] / row['published'] - 1:+.1%}"


COLUMNS: Sequence[Column[Record]] = (
    ("what", lambda row: row["what"]),
    ("unit", lambda row: row["unit"]),
    ("published", lambda row: f"{row['published']:.4g}"),
    ("simulated", lambda row: f"{row['simulated']:.4g}"),
    ("deviation", find_deviation),
    ("differs", lambda row: row["differs"]),
    ("source", lambda row: f"[{row['source'].rpartition('/')[-1]}]({row['source']})"),
)


def tabulate(record: Record) -> list[Table]:
    """Published numbers beside simulated ones, or the forecasts."""
    if "forecasts" in record:
        return [make_table(record["forecasts"], llama_forecast.COLUMNS, "simulated")]
    return [make_table(record["rows"], COLUMNS, "simulated")]


main = Benchmark("published", __doc__, PublishedArguments, measure, tabulate)

if __name__ == "__main__":
    main()
