"""What the planner answers without a training step: explain, and what if.

explain    what the backend does with a model on this machine, graph by graph
what_if    a training step on other hardware, and how far its batch can grow
tracing    compile each graph of a model up to its partition
forecast   what what_if returns
hardware   what what_if is asked about
tables     text tables
"""
