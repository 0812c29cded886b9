"""The planner: a function of plain data, which sees no graph, no tensor and no file.

plan            what is known of each saved value, and what is decided about it
link            seconds of a transfer
simulation      what a step takes and holds, when transfers stand where they stand
placement       where the transfers of a set of values stand
selection       which values move
"""
