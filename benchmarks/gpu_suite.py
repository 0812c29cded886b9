"""Runs every GPU test and every GPU measurement, and writes one JSON file of their results.

    python -m benchmarks.gpu_suite --output build/gpu.json

It takes less than 8 minutes. Sections run by priority; those for which no time is left are marked
as skipped, and ways to train for which a section has no time are refused in words. The file is
written again after every result, so a run that is killed keeps its results; `--only` measures
sections again, or those that were skipped, into the same file. `--dry-run` goes through all of it
on the CPU with tiny sizes. `python -m benchmarks.gpu_report build/gpu.json` prints the tables.

Needs a CUDA device with 80 GiB, 64 GiB of host memory, a C compiler, torch >= 2.11 with its Triton,
and the packages networkx, numpy, highspy, transformers >= 5, rich, pytest, pytest-timeout and
hypothesis; nothing from the network. trl and kvikio are measured where they are installed. The
package itself need not be installed: a tree of links beside the output takes its place.

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
# Parts of benchmarks/gpu_measurements.py by priority, with what they may take. Estimates, from what
# compilations and steps took on an H200: an import 10 s, a compilation 4 to 17 s, the ten steps
# behind it 4 s.
PARTS = {"gpt": 145.0, "bert": 40.0, "t5": 40.0, "llama": 30.0, "throughput": 75.0, "nvme": 25.0}
# Those that run only if they are asked for by name.
PROBES = {"transfers": 60.0, "ops": 60.0}
# With less time than this a model is not even compiled.
LEAST_SECONDS = 25.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run all sections within the time; see the module's text for files and exit status."""
    arguments = build_parser().parse_args(argv)
    if not arguments.dry_run and not torch.cuda.is_available():
        build_parser().error(
            f"no CUDA device (torch {torch.__version__}): nothing was run; "
            "--dry-run goes through everything on the CPU"
        )
    start = time.monotonic()
    results = Results(arguments.output, find_facts(arguments), find_kept(arguments))
    with link_packages(arguments.output.parent) as environment:
        sections = plan_sections(arguments)
        for number, section in enumerate(sections):
            left = arguments.seconds - (time.monotonic() - start)
            if left < min(section.least_seconds, section.limit_seconds):
                results.skip(section.name, "no time left")
                continue
            later = sum(each.limit_seconds for each in sections[number + 1 :])
            # A section may have what those before it have left.
            limit_seconds = min(left, max(section.limit_seconds, left - later))
            run_section(section, results, environment, limit_seconds)
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
    names = ", ".join(("tests", *PARTS, *PROBES))
    add("--only", nargs="*", help=f"of {names}; the file keeps what it has of others")
    add("--dry-run", action="store_true", help="on the CPU with tiny sizes")
    return parser


def find_kept(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sections that the file has already, where only some are measured again."""
    if arguments.only is None or not arguments.output.is_file():
        return {}
    return json.loads(arguments.output.read_text())["sections"]


def plan_sections(arguments: argparse.Namespace) -> list[Section]:
    """The sections, by descending priority."""
    tiny = arguments.dry_run
    # By name: this process has no package fxoffload that it could import them with.
    work = {
        "device": "cpu" if tiny else "cuda",
        "tiny": tiny,
        "directory": arguments.directory,
        "folder": str(arguments.output.parent.resolve()),
    }

    def measure(part: str, limit: float) -> Section:
        command = ("-m", "benchmarks.gpu_measurements", part, json.dumps(work))
        # Tiny sizes are for CPUs, which may be slow.
        limit_seconds, least_seconds = (600.0, 10.0) if tiny else (limit, LEAST_SECONDS)
        return Section(part, command, limit_seconds, least_seconds)

    report = ("-m", "benchmarks.gpu_report", "--json", str(arguments.output.resolve()))
    sections = [
        Section("tests", (*TESTS, *TEST_OPTIONS), 90.0),
        *(measure(part, limit) for part, limit in PARTS.items()),
        Section("verdicts", report, 15.0, 5.0),
    ]
    if arguments.only is None:
        return sections
    asked = [each for each in sections if each.name in (*arguments.only, "verdicts")]
    return [*(measure(x, limit) for x, limit in PROBES.items() if x in arguments.only), *asked]


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
            "driver": find_driver(),
        }
    return facts


def find_driver() -> str:
    """The version of NVIDIA's driver; "unknown" without its tool."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def find_commit() -> str:
    """The commit of the sources, with a "+" if they were changed; "unknown" without git."""
    if shutil.which("git") is None:
        return "unknown"
    command = ("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
