"""Graph in, graph out: the passes over a forward and a backward graph.

| pass               | needs                      | leaves                                         |
|--------------------|----------------------------|------------------------------------------------|
| hoist_saved        | partitioned graphs         | early what only the backward needs             |
| hoist_reductions   | partitioned graphs         | early sums in the backward                     |
| restore_order      | nothing new or gone        | torch's own order, where nothing moves         |
| find_saved_values  | partitioned graphs         | a SavedValue for each saved storage            |
| build_step         | saved values, cost model   | a Step; seconds of nodes, lives of storages    |
| (choose_offloads)  | a step                     | a Plan, by fxoffload.planner                   |
| insert_transfers   | a plan                     | the four ops, in trivially right places        |
| schedule_transfers | inserted ops, the plan     | releases and prefetches where the plan says    |
| find_profile       | a step, when its ops ran   | a Profile: what nodes took, by the roofline    |
| verify_transfers   | any graph                  | nothing; raises GraphError on a broken rule    |

`choose_offloads` tries sets of values: `place_transfers` says where their transfers stand, and
`fxoffload.planner.simulation` what the step then takes.

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
from fxoffload.passes.pipeline import calibrate, run_passes, transform_graph
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
    "restore_order",
    "run_passes",
    "schedule_transfers",
    "transform_graph",
    "verify_transfers",
]
