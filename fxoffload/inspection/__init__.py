"""Plans and predictions for a model, without a training step.

explain    the plan of each graph of a model on this machine
graph_diff what passes changed in a graph, as a diff of its code
lifetime_chart  where the saved values of a small graph are
what_if    a training step on other hardware, and the largest batch that fits
report     what a step does, value by value: text, JSON, page, trace (report_*, page/)
tracing    compile each graph of a model up to its partition
forecast   the records that what_if returns
hardware   the record that describes hardware to what_if
catalogue  hardware by name (hardware.toml), or from a file
tables     text tables
"""
