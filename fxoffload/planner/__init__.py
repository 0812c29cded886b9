"""The planner: a function of plain data, which sees no graph, no tensor and no file.

plan            the saved values, and the decision on each of them
step            the nodes of a training step, and the transfers of its values
link            seconds of a transfer
residences      when values are on the device, and the sums of their bytes
simulation      the predicted time and memory of a step with its transfers
timeline        the same, event by event
condensing      a step in fewer pieces, for the search
placement       the places of the transfers of a set of values
walks           the state of the two walks of placement
slack           moves releases later and prefetches earlier where memory allows it
search          the best set of values to move, of those that are tried
selection       which values move
peak            describes what is in memory at the peak
plan_writer     writes the plan of a graph
graph_model     what a schedule needs to know of a graph
half_seconds    the seconds of a half, by the clocks of its ops
joining         joins the calls of a step to one step
program         the schedule of a step
moments         the nodes of a step that its bound depends on
linear_program  linear programs, solved by HiGHS
fluid           the linear program that bounds all plans of a step
bound           the least time and the lowest peak that any plan can reach
"""
