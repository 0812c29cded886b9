"""The passes over a forward and a backward graph: analyses, rewrites, and their pipeline.

| pass               | needs                      | gives                                          |
|--------------------|----------------------------|------------------------------------------------|
| hoist_saved        | partitioned graphs         | nodes that only the backward needs, moved up   |
| hoist_reductions   | partitioned graphs         | reductions of the backward, moved up           |
| restore_order      | the same nodes as before   | torch's own order, if nothing is moved         |
| find_saved_values  | partitioned graphs         | a SavedValue for each saved storage            |
| build_step         | saved values, cost model   | a Step: seconds of nodes, lifetimes of storages|
| (choose_transfers) | a step                     | a Choice, made by fxoffload.planner            |
| insert_transfers   | saved values               | the four ops, each at a legal place            |
| find_op_positions  | inserted ops               | for each op, the node of the step after it     |
| verify_transfers   | any graph                  | nothing; raises GraphError on a broken rule    |

`choose_transfers` tries sets of values: `place_transfers` places their transfers, and
`fxoffload.planner.simulation` predicts the step that results.

No pass touches a file or a stream, or imports another pass; `pipeline` puts them in order.
"""

from fxoffload.passes.hoisting import (
    Order,
    find_order,
    hoist_reductions,
    hoist_saved,
    restore_order,
)
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.op_positions import find_ops
from fxoffload.passes.partition_choice import (
    LEGAL_CUTS,
    PassOptions,
    choose_partition,
    find_forced,
    list_cuts,
    make_plan,
    saves,
)
from fxoffload.passes.pipeline import Transformed, run_passes, transform_graph
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers

__all__ = [
    "LEGAL_CUTS",
    "Order",
    "PassOptions",
    "Transformed",
    "build_step",
    "choose_partition",
    "find_forced",
    "find_ops",
    "find_order",
    "find_saved_values",
    "hoist_reductions",
    "hoist_saved",
    "insert_transfers",
    "list_cuts",
    "make_plan",
    "restore_order",
    "run_passes",
    "saves",
    "transform_graph",
    "verify_transfers",
]
