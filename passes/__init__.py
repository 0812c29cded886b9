"""Graph in, graph out: the passes over a forward and a backward graph.

| pass               | needs                      | leaves                                         |
|--------------------|----------------------------|------------------------------------------------|
| find_saved_values  | partitioned graphs         | a SavedValue for each saved storage            |
| choose_offloads    | saved values, node seconds | a Plan; no graph is looked at                  |
| insert_transfers   | a plan                     | the four ops, in trivially right places        |
| sink_releases      | inserted ops               | releases where their writes should be done     |
| advance_prefetches | inserted ops               | prefetches early enough for their reads        |
| verify_transfers   | any graph                  | nothing; raises GraphError on a broken rule    |

No pass touches a file or a stream, or imports another pass; `pipeline` puts them in order.
"""

from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.pipeline import PassOptions, build_timeline, run_passes, transform_graph
from fxoffload.passes.scheduling import advance_prefetches, sink_releases
from fxoffload.passes.selection import Timeline, choose_offloads, predict_peak
from fxoffload.passes.verification import verify_transfers

__all__ = [
    "PassOptions",
    "Timeline",
    "advance_prefetches",
    "build_timeline",
    "choose_offloads",
    "find_saved_values",
    "insert_transfers",
    "predict_peak",
    "run_passes",
    "sink_releases",
    "transform_graph",
    "verify_transfers",
]
