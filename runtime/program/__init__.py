"""What ran in a step: its calls in order, what they took, and the schedules made of that.

live_bytes   what a device holds
half_run     one half of a step as it runs
entry        one value of a call, on its way out and back
calls        one step: its calls, when their ops ran, which schedule each call follows
comparison   what steps have in common, and whether they have changed
advice       what a user may be told of steps that wait
book         the programs of a thread: what was measured, and the schedule of each
threads      the books of all threads
"""
