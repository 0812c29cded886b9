"""Runs every GPU test and every GPU measurement, and writes one JSON file of their results.

    python -m benchmarks.gpu_suite --output build/gpu.json

`--dry-run` goes through all of it on the CPU with tiny sizes.
It takes less than 8 minutes: sections for which no time is left are marked as skipped. The file is
written again after every result, so a run that is killed keeps its results.

Needs a CUDA device with 32 GiB, a C compiler, torch >= 2.11 with its Triton, and the packages
networkx, numpy, transformers >= 5, rich, pytest, pytest-timeout and hypothesis; nothing from the
network. kvikio is measured where it is installed. The package itself need not be installed: a
tree of links beside the output takes its place.

Exit status: 0 when all went well, 1 when a test or a measurement failed, 2 without CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.sections import ROOT, Results, Section, link_packages, run_section

BUDGET_SECONDS = 460.0
TESTS = ("-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-v", "--tb=short")
# A warning of one torch version must not spoil the run; the tests read what is printed.
TEST_OPTIONS = ("-W", "default", "--color=no", "-p", "no:cacheprovider")
# Four layers are the depth of the SSDTrain paper. A wider model computes more for each byte that it
# saves, so that more of them hide.
SHAPE = {"layers": 4, "hidden": 4096, "heads": 32, "batch": 8, "length": 1024}
WIDE_SHAPE = {"layers": 3, "hidden": 8192, "heads": 64, "batch": 16, "length": 1024}
TINY_SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "batch": 2, "length": 16}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all sections within the time; see the module's text for files and exit status."""
    arguments = build_parser().parse_args(argv)
    if not arguments.dry_run and not torch.cuda.is_available():
        build_parser().error(
            f"no CUDA device (torch {torch.__version__}): nothing was run; "
            "--dry-run goes through everything on the CPU"
        )
    start = time.monotonic()
    results = Results(arguments.output, find_facts(arguments))
    with link_packages(arguments.output.parent) as environment:
        for section in plan_sections(arguments):
            left = arguments.seconds - (time.monotonic() - start)
            if left < min(section.least_seconds, section.limit_seconds):
                results.sections[section.name] = {"status": "skipped", "why": "no time left"}
                results.write()
                continue
            run_section(section, results, environment, min(left, section.limit_seconds))
            done = results.sections[section.name]
            print(f"{section.name}: {done['status']} in {done['seconds']:.0f} s", flush=True)
    results.write(complete=True)
    failed = [name for name, done in results.sections.items() if done["status"] == "failed"]
    print(f"{arguments.output}: {len(results.sections)} sections, failed: {failed or 'none'}")
    sys.exit(1 if failed else 0)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=ROOT / "build" / "gpu.json", help="build/gpu.json")
    add("--seconds", type=float, default=BUDGET_SECONDS, help="for everything together")
    add("--directory", help="where fxoffload spills to; default: see OffloadConfig")
    add("--commit", help="of the sources, where git cannot tell")
    add("--only", nargs="*", help="names of sections; default: all")
    add("--dry-run", action="store_true", help="on the CPU with tiny sizes")
    return parser


def plan_sections(arguments: argparse.Namespace) -> list[Section]:
    """The sections, by descending priority."""
    tiny = arguments.dry_run
    device = "cpu" if tiny else "cuda"

    def measure(part: str, **work: Any) -> tuple[str, ...]:
        # By name: this process has no package fxoffload that it could import them with.
        return ("-m", "benchmarks.gpu_measurements", part, json.dumps(work))

    def probe(part: str) -> Section:
        steps, place = 2 if tiny else 10, arguments.directory
        work = measure(part, device=device, tiny=tiny, directory=place, steps=steps)
        return Section(part, work, 60)

    def train(
        model: str,
        name: str,
        dtype: str = "bfloat16",
        shape: dict[str, int] = SHAPE,
        **options: Any,
    ) -> Section:
        tiny_options = {"compiler": "eager", "min_bytes": 1} if tiny else {}
        workload = {
            "model": model,
            "shape": TINY_SHAPE if tiny else shape,
            "device": device,
            "options": {"directory": arguments.directory, **options, **tiny_options},
            "dtype": "float32" if tiny else dtype,
        }
        proves, pairs = options.get("memory_budget") == "min", 2 if tiny else 5
        work = measure("model", workload=workload, pairs=pairs, proves=proves)
        return Section(f"{model}-{name}", work, 120, least_seconds=30)

    host: dict[str, Any] = {"ioengine": "memory", "host_budget": "32GiB"}
    sections = [
        Section("tests", (*TESTS, *TEST_OPTIONS), 240),
        *(probe(part) for part in ("transfers", "ops", "engines", "staging")),
        train("gpt", "wide-host-hidden", shape=WIDE_SHAPE, **host),
        train("gpt", "host-min", memory_budget="min", **host),
        train("gpt", "host-hidden", **host),
        train("bert", "host-hidden", **host),
        train("t5", "host-hidden", **host),
        train("gpt", "host-hidden-float32", "float32", **host),
        train("gpt", "nvme-hidden"),
        train("gpt", "nvme-min", memory_budget="min"),
        train("bert", "host-min", memory_budget="min", **host),
        train("t5", "host-min", memory_budget="min", **host),
    ]
    return [each for each in sections if arguments.only is None or each.name in arguments.only]


def find_facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """The facts of the machine and of the sources, for the record."""
    facts: dict[str, Any] = {
        "benchmark": "gpu_suite",
        "dry_run": arguments.dry_run,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": arguments.commit or find_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "device": "cpu",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "devices": torch.cuda.device_count(),
            "device_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return facts


def find_commit() -> str:
    """The commit of the sources, with a "+" if they were changed; "unknown" without git."""
    if shutil.which("git") is None:
        return "unknown"
    command = ("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
