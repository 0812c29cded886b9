"""The passes over a forward and a backward graph: analyses, rewrites, and their pipeline.

| pass               | needs                      | gives                                          |
|--------------------|----------------------------|------------------------------------------------|
| hoist_saved        | partitioned graphs         | nodes for the backward alone, moved up         |
| hoist_reductions   | partitioned graphs         | reductions of the backward, moved up           |
| restore_order      | the same nodes as before   | torch's own order, for graphs that move nothing|
| find_saved_values  | partitioned graphs         | a SavedValue for each saved storage            |
| build_step         | saved values, cost model   | a Step: seconds of nodes, lifetimes of storages|
| (choose_offloads)  | a step                     | a Plan, made by fxoffload.planner              |
| insert_transfers   | a plan                     | the four ops, each at a legal place            |
| schedule_transfers | inserted ops, the plan     | releases and prefetches at the planned places  |
| find_profile       | a step, clocks of its ops  | a Profile: measured over roofline seconds      |
| verify_transfers   | any graph                  | nothing; raises GraphError on a broken rule    |

`choose_offloads` tries sets of values: `place_transfers` places their transfers, and
`fxoffload.planner.simulation` predicts the step that results.

No pass touches a file or a stream, or imports another pass; `pipeline` puts them in order.
"""

from fxoffload.passes.calibration import find_profile, find_transfers
from fxoffload.passes.hoisting import (
    Order,
    find_order,
    hoist_reductions,
    hoist_saved,
    restore_order,
)
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.partition_choice import PassOptions, choose_partition, make_plan
from fxoffload.passes.pipeline import calibrate, prepare_graph, run_passes, transform_graph
from fxoffload.passes.scheduling import schedule_transfers
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers

__all__ = [
    "Order",
    "PassOptions",
    "build_step",
    "calibrate",
    "choose_partition",
    "find_order",
    "find_profile",
    "find_saved_values",
    "find_transfers",
    "hoist_reductions",
    "hoist_saved",
    "insert_transfers",
    "make_plan",
    "prepare_graph",
    "restore_order",
    "run_passes",
    "schedule_transfers",
    "transform_graph",
    "verify_transfers",
]
