"""The command line: `fxoffload COMMAND`, or `python -m fxoffload COMMAND`.

main                the entry point; says what to install where typer is missing
app                 the commands as a typer application
doctor              the command that checks this machine
findings            the record of one check
software_checks     versions, the C++ compiler, CUDA, KvikIO
host_checks         locked memory, host memory, malloc
directory_checks    the file system of a spill directory
probe               the command that measures directories
fio_fields          samples of transfers by the field names of fio
plan                the command that predicts a training step
model_source        a model by the name of a callable, or of a configuration of transformers
transformers_models models of transformers from a configuration
planned_hardware    named hardware, a file, or this machine
plan_tables         plans as tables
train               the command that trains a small model on a text
training            the steps of that, and what they took
byte_models         small language models over bytes
text_windows        batches of random windows of a text
bench               the command that runs the benchmarks of a clone
report              the command that shows a saved report
output              tables, JSON, progress, errors and exit codes
"""
