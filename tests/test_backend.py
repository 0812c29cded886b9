"""The backend as users call it: options, order of calls, errors, and graphs that move nothing."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from waiting import wait_for_writes

import fxoffload
from fxoffload import backend, config, machine, runtime, torch_internals

WIDTH = 32


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, WIDTH),
        nn.Sigmoid(),
        nn.Linear(WIDTH, 1),
    )


def compile_eager(model: nn.Module, directory: Path, **options: Any) -> Any:
    options = {"compiler": "eager", "min_bytes": 1, "memory_budget": "min", **options}
    torch._dynamo.reset()
    return fxoffload.compile(model, directory=directory, **options)


def reference_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of the uncompiled model, added to nothing."""
    return list(torch.autograd.grad(model(x).sum(), list(model.parameters())))


def assert_gradients(model: nn.Module, expected: list[Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def assert_empty() -> None:
    gc.collect()
    wait_for_writes()
    statistics = fxoffload.statistics()
    assert statistics.offloaded_bytes > 0
    assert (statistics.live_bytes, statistics.inflight_bytes) == (0, 0)


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_before_two_backwards(
    spill_directory: Path, order: tuple[int, int], drain: bool
) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    inputs = [torch.randn(16, WIDTH), torch.randn(16, WIDTH)]
    compiled(inputs[0]).sum().backward()
    model.zero_grad()
    wait_for_writes()
    fxoffload.reset_statistics()
    losses = [compiled(x).sum() for x in inputs]
    if drain:
        wait_for_writes()
    assert fxoffload.statistics().live_bytes == fxoffload.statistics().offloaded_bytes
    for index in order:
        losses[index].backward()
    first, second = (reference_gradients(model, x) for x in inputs)
    assert_gradients(model, [a + b for a, b in zip(first, second, strict=True)])
    if drain:
        assert fxoffload.statistics().read_bytes == fxoffload.statistics().offloaded_bytes
    assert_empty()


@pytest.mark.parametrize("drain", [True, False])
def test_retain_graph(spill_directory: Path, drain: bool) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    x = torch.randn(16, WIDTH)
    fxoffload.reset_statistics()
    loss = compiled(x).sum()
    if drain:
        wait_for_writes()
    for _ in range(3):
        loss.backward(retain_graph=True)
    assert_gradients(model, [3 * gradient for gradient in reference_gradients(model, x)])
    assert fxoffload.statistics().live_bytes > 0
    del loss
    assert_empty()


def test_forward_without_backward_frees_its_values(spill_directory: Path) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    fxoffload.reset_statistics()
    loss = compiled(torch.randn(16, WIDTH)).sum()
    assert fxoffload.statistics().live_bytes > 0
    del loss
    wait_for_writes()
    assert_empty()
    assert fxoffload.statistics().read_bytes == 0


def test_exception_between_forward_and_backward(spill_directory: Path) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    x = torch.randn(16, WIDTH)
    fxoffload.reset_statistics()

    def fail() -> None:
        loss = compiled(x).sum()
        assert loss.requires_grad
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    wait_for_writes()
    assert_empty()
    compiled(x).sum().backward()
    assert_gradients(model, reference_gradients(model, x))
    assert_empty()


def test_no_grad_forward_between_steps_moves_nothing(spill_directory: Path) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    x = torch.randn(16, WIDTH)
    loss = compiled(x).sum()
    before = fxoffload.statistics().offloaded_bytes
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(compiled(x), expected)
    assert fxoffload.statistics().offloaded_bytes == before
    loss.backward()
    assert_gradients(model, reference_gradients(model, x))
    assert_empty()


def test_threads(spill_directory: Path) -> None:
    """Steps of one compiled model in several threads at once keep apart."""
    model = make_model()
    compiled = compile_eager(model, spill_directory)
    inputs = [torch.randn(16, WIDTH) for _ in range(4)]
    expected = [reference_gradients(model, x) for x in inputs]
    compiled(inputs[0]).sum().backward()
    failures: list[BaseException] = []

    def run(x: Tensor, gradients: list[Tensor]) -> None:
        try:
            for _ in range(10):
                loss = compiled(x).sum()
                actual = torch.autograd.grad(loss, list(model.parameters()))
                torch.testing.assert_close(list(actual), gradients)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert_empty()


def test_string_backend_needs_no_import_of_ours(spill_directory: Path) -> None:
    model = make_model()
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    options["memory_budget"] = "min"
    torch._dynamo.reset()
    fxoffload.reset_statistics()
    compiled = torch.compile(model, backend="fxoffload", options=options)
    x = torch.randn(16, WIDTH)
    loss = compiled(x).sum()
    wait_for_writes()
    loss.backward()
    assert_gradients(model, reference_gradients(model, x))
    assert fxoffload.statistics().read_bytes == fxoffload.statistics().offloaded_bytes
    assert_empty()


def test_nothing_is_left_in_the_directory(spill_directory: Path) -> None:
    compiled = compile_eager(make_model(), spill_directory)
    loss = compiled(torch.randn(16, WIDTH)).sum()
    assert list(spill_directory.iterdir()) == []
    loss.backward()


def test_budget_that_fits_moves_nothing(spill_directory: Path) -> None:
    model = make_model()
    compiled = compile_eager(model, spill_directory, memory_budget="1GiB")
    x = torch.randn(16, WIDTH)
    compiled(x).sum().backward()  # The first step moves all that may move.
    fxoffload.reset_statistics()
    compiled(x).sum().backward()
    assert fxoffload.statistics().offloaded_bytes == 0
    assert fxoffload.statistics().kept_bytes > 0


@pytest.mark.parametrize("way", ["string", "typed"])
def test_budget_that_cannot_be_met_is_an_error(spill_directory: Path, way: str) -> None:
    model = make_model()
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    if way == "string":
        options["memory_budget"] = 1
        compiled = torch.compile(model, backend="fxoffload", options=options)
    else:
        compiled = fxoffload.compile(model, memory_budget=1, **options)
    with pytest.raises(fxoffload.BudgetError, match=r"memory_budget=1 .* lowest peak .* at"):
        compiled(torch.randn(16, WIDTH))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_buget": 1}, ["memory_buget", "memory_budget", "min_bytes"]),
        ({"memory_budget": "lots"}, ["memory_budget", "lots", "8GiB"]),
        ({"ioengine": "posics"}, ["ioengine", "posics", "posix", "memory"]),
        ({"directory": "/nonexistent/place"}, ["/nonexistent/place", "does not exist"]),
        ({"compiler": "gcc"}, ["compiler", "gcc", "inductor"]),
        ({"mode": "max-autotun"}, ["mode", "max-autotun", "max-autotune"]),
        ({"inductor": {"shape_paddin": True}}, ["inductor", "shape_paddin", "shape_padding"]),
    ],
)
@pytest.mark.parametrize("way", ["string", "typed"])
def test_bad_options_are_one_clear_error(
    options: dict[str, Any], words: list[str], way: str
) -> None:
    """The same class by both ways, with no frame of torch's compiler in the message."""
    torch._dynamo.reset()
    model = make_model()

    def run() -> None:
        if way == "typed":
            fxoffload.compile(model, **options)
        else:
            torch.compile(model, backend="fxoffload", options=options)(torch.randn(4, WIDTH))

    with pytest.raises(fxoffload.ConfigError) as caught:
        run()
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "BackendCompilerFailed" not in message
    assert "Traceback" not in message
    assert "TORCH" not in message


def test_bad_mode_of_torch_compile_is_one_clear_error() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(make_model(), backend="fxoffload", mode="max-autotun")
    with pytest.raises(fxoffload.ConfigError, match="did you mean 'max-autotune'"):
        compiled(torch.randn(4, WIDTH))


@pytest.mark.parametrize("way", ["string", "typed", "option", "explain"])
def test_options_of_inductor_reach_it(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    seen: list[Any] = []

    class Seen(Exception):
        """Raised where Inductor would start."""

    def stop(*_: Any, config_patches: dict[str, Any], **__: Any) -> None:
        seen.append((config_patches["max_autotune"], config_patches.get("shape_padding")))
        raise Seen

    monkeypatch.setattr(torch_internals.compilation, "compile_fx", stop)
    torch._dynamo.reset()
    model, x = make_model(), torch.randn(4, WIDTH)
    mode = "max-autotune-no-cudagraphs"
    options = {"directory": spill_directory, "inductor": {"shape_padding": False}}
    calls = {
        "string": lambda: torch.compile(model, backend="fxoffload", mode=mode)(x),
        "option": lambda: torch.compile(
            model, backend="fxoffload", options={**options, "mode": mode}
        )(x),
        "typed": lambda: fxoffload.compile(model, mode=mode, **options)(x),
        "explain": lambda: fxoffload.explain(model, x, options={**options, "mode": mode}),
    }
    with pytest.raises(Exception, match="Seen"):
        calls[way]()
    assert seen == [(True, None if way == "string" else False)]


@pytest.mark.parametrize("options", [{"ioengine": "memory"}, {"enabled": False}])
def test_no_disk_is_needed(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    def refuse() -> Path:
        raise fxoffload.ConfigError("no directory for the spill file")

    monkeypatch.setattr(config, "default_directory", refuse)
    torch._dynamo.reset()
    fxoffload.reset_statistics()
    model, x = make_model(), torch.randn(16, WIDTH)
    chosen = {"compiler": "eager", "min_bytes": 1, "memory_budget": "min", **options}
    fxoffload.compile(model, **chosen)(x).sum().backward()
    assert_gradients(model, reference_gradients(model, x))
    assert (fxoffload.statistics().offloaded_bytes > 0) is ("ioengine" in options)
    torch._dynamo.reset()
    assert fxoffload.explain(model, x, options=chosen).saved_bytes > 0 or "enabled" in options


# --- counts -------------------------------------------------------------------------------------


def count_graphs(run: Callable[[], Any]) -> tuple[int, int]:
    """How many graphs `run` compiles, and how many of them move values."""
    torch._dynamo.reset()
    before = fxoffload.graph_counts()
    run()
    now = fxoffload.graph_counts()
    return now.compiled - before.compiled, now.moving - before.moving


def test_graphs_are_counted(spill_directory: Path) -> None:
    model, x = make_model(), torch.randn(16, WIDTH)
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}

    def run(memory_budget: str, *inputs: Tensor, enabled: bool = True) -> None:
        chosen = {**options, "memory_budget": memory_budget, "enabled": enabled}
        compiled = torch.compile(model, backend="fxoffload", options=chosen, dynamic=False)
        for one in inputs:
            compiled(one).sum().backward()

    assert count_graphs(lambda: run("min", x, x)) == (1, 1)
    assert count_graphs(lambda: run("min", x, x[:8])) == (2, 2)
    assert count_graphs(lambda: run("1GiB", x)) == (1, 1), "it may move: its ops follow schedules"
    assert count_graphs(lambda: run("min", x, enabled=False)) == (1, 0)
    counts = fxoffload.graph_counts()
    assert (
        str(counts) == f"{counts.compiled} graph(s) compiled, {counts.moving} of them move values"
    )
    fxoffload.reset_statistics()
    assert fxoffload.graph_counts() == counts


@pytest.mark.parametrize(
    ("min_bytes", "much_bytes", "said"), [(1, 1, 0), (2**20, 2**20, 0), (2**20, 1, 1)]
)
def test_a_graph_that_saves_much_and_moves_nothing_is_named(
    spill_directory: Path,
    min_bytes: int,
    much_bytes: int,
    said: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backend, "MUCH_BYTES", much_bytes)
    compiled = compile_eager(make_model(), spill_directory, min_bytes=min_bytes)
    for _ in range(2):
        compiled(torch.randn(512, WIDTH)).sum().backward()
    found = [text for text in caplog.messages if text.startswith("nothing may move of the 0.")]
    assert len(found) == said
    assert all("min_bytes" in text and "static input" not in text for text in found)


def test_a_graph_that_fails_is_not_counted(spill_directory: Path) -> None:
    def run() -> None:
        compiled = compile_eager(make_model(), spill_directory, memory_budget=1)
        with pytest.raises(fxoffload.BudgetError):
            compiled(torch.randn(16, WIDTH))

    assert count_graphs(run) == (0, 0)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="seen in torch 2.13")
def test_modules_of_torch_compiled_in_place_are_no_graphs(spill_directory: Path) -> None:
    """Module.compile compiles the frames that run, and Dynamo skips those of torch.nn's files.

    Should this fail, torch compiles them, and docs/faq.md must no longer warn of it.
    """
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = make_model()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    def run_in_place(module: nn.Module) -> None:
        module.compile(backend="fxoffload", options=options)
        module(torch.randn(16, WIDTH)).sum().backward()

    def run_wrapped() -> None:
        compiled = torch.compile(make_model(), backend="fxoffload", options=options)
        compiled(torch.randn(16, WIDTH)).sum().backward()

    assert count_graphs(lambda: run_in_place(make_model()))[0] == 0
    assert count_graphs(lambda: run_in_place(Wrapped()))[0] == 1
    assert count_graphs(run_wrapped)[0] == 1


def test_too_small_disk_is_said_before_the_first_step(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    compiled = compile_eager(make_model(), spill_directory, max_inflight_bytes=12345)
    fxoffload.reset_statistics()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(fxoffload.StoreFull, match=str(spill_directory)):
        compiled(torch.randn(16, WIDTH))
    assert fxoffload.statistics().offloaded_bytes == 0


@pytest.mark.slow
def test_inference_graph_has_no_ops(spill_directory: Path) -> None:
    """An inference graph is plain Inductor's, to the letter."""
    from torch._inductor.utils import run_and_get_code

    model = make_model().eval()
    x = torch.randn(16, WIDTH)
    codes: list[str] = []
    for options in ({"backend": "inductor"}, {"backend": "fxoffload"}):
        torch._dynamo.reset()
        if options["backend"] == "fxoffload":
            options["options"] = {"directory": spill_directory, "min_bytes": 1}
        with torch.no_grad():
            _, (code,) = run_and_get_code(torch.compile(model, **options), x)
        codes.append(re.sub(r"# AOT ID: .*", "", code))
    assert "fxoffload" not in codes[1]
    assert codes[0] == codes[1]


@pytest.mark.slow
def test_graph_with_nothing_to_move_has_no_ops(spill_directory: Path) -> None:
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch._dynamo.reset()
    compiled = fxoffload.compile(make_model(), directory=spill_directory, min_bytes="1GiB")
    _, codes = run_fw_bw_and_get_code(lambda: compiled(torch.randn(16, WIDTH)).sum())
    assert len(codes) == 2
    assert all("fxoffload" not in code for code in codes)


@pytest.mark.slow
def test_a_compiled_graph_from_torchs_cache_has_its_plan(
    spill_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor.utils import fresh_cache

    x = torch.randn(16, WIDTH)
    plans: list[str] = []
    with fresh_cache(), caplog.at_level(logging.INFO, "fxoffload"):
        for _ in range(2):
            torch._dynamo.reset()
            caplog.clear()
            options = {"min_bytes": 1, "memory_budget": "min"}
            compiled = fxoffload.compile(make_model(), directory=spill_directory, **options)
            compiled(x).sum().backward()
            (record,) = [record for record in caplog.records if "moved " in record.message]
            plans.append(record.message)
    assert plans[1] == f"compiled before, from torch's cache: {plans[0]}"
    assert_empty()


def test_the_plan_uses_the_speed_of_the_work(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for once a graph, with the dtype of its products, and a slow device hides more."""
    asked: list[tuple[torch.device, torch.dtype]] = []

    def recall(device: torch.device, dtype: torch.dtype) -> runtime.Speed:
        asked.append((device, dtype))
        assert torch.ones(2).sum().item() == 2  # Not in the midst of tracing.
        return runtime.Speed(1.0, 1.0)

    monkeypatch.setattr(runtime, "recall_speed", recall)
    model, x = make_model().bfloat16(), torch.randn(16, WIDTH).bfloat16()
    options = {"compiler": "eager", "directory": spill_directory, "min_bytes": 1}
    slow = fxoffload.explain(model, x, options=options)
    assert asked == [(torch.device("cpu"), torch.bfloat16)]
    assert slow.offloaded_bytes > 0
    monkeypatch.setattr(runtime, "recall_speed", lambda *_: runtime.Speed(1e20, 1e20))
    assert fxoffload.explain(model, x, options=options).offloaded_bytes == 0


def test_the_host_tier_of_a_gpu_is_opened_with_its_first_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the device of its inputs; what follows is compiled otherwise in no way."""
    monkeypatch.setattr(runtime, "find_host_share", lambda: 2**20)
    options = config.OffloadConfig(directory=tmp_path, ioengine="posix", compiler="eager")
    store = runtime.find_store(backend.open_store(options))
    graph = torch.fx.symbolic_trace(lambda x: (x.tanh(),))
    for device, host_bytes in (("cpu", 0), ("cuda", 2**20), ("cpu", 2**20)):
        monkeypatch.setattr(machine, "find_compute_device", lambda _, it=device: torch.device(it))
        backend.compile_graph(graph, [torch.ones(2)], options)
        assert store.host_bytes == host_bytes
