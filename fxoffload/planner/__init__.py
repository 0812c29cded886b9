"""The planner: a function of plain data, which sees no graph, no tensor and no file.

plan            what is known of each saved value, and what is decided about it
link            seconds of a transfer
condensing      a step in fewer pieces, for the search
simulation      what a step takes and holds, when transfers stand where they stand
placement       where the transfers of a set of values stand
walks           what placement carries along
slack           the same transfers where memory allows them more time
search          which set of values, of those that are tried
selection       which values move
plan_writer     a choice as the plan of a graph
graph_model     what a schedule needs to know of a graph
joining         the calls of a step as one step
program         the schedule of a step
moments         the nodes of a step that may decide its bound
linear_program  variables, rows, and what HiGHS finds
fluid           a step in which values are fluid, as a linear program
bound           what no plan gets below
"""
