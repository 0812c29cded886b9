"""Plans and predictions for a model, without a training step.

explain    the plan of each graph of a model on this machine
what_if    a training step on other hardware, and the largest batch that fits
tracing    compile each graph of a model up to its partition
forecast   the records that what_if returns
hardware   the record that describes hardware to what_if
catalogue  hardware by name (hardware.toml), or from a file
tables     text tables
"""
