"""Record the steps of a job, measure them, and follow the schedules that the planner makes of that.

live_bytes   the bytes that a device holds now
sampler      a thread that counts these bytes again and again
live_watch   assigns the counted bytes to the ops of a step
store_watch  waits for the stores of a step, and their transfers
half_run     one forward or backward as it runs: times of its ops, counted bytes
entry        one value of a call, from its offload to its wait
calls        one step as it runs: its calls, and the schedule that each call follows
value_sizes  sizes of values that change from step to step
price        the compute time that each transferred byte takes
comparison   medians over steps, and whether steps have changed
learned      everything known of one program
advice       warnings about steps that wait
book         the programs of one thread: when to measure, when to make a schedule
threads      the books of all threads
"""
