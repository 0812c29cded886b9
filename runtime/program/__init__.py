"""What ran in a step: its calls in order, what they took, and the schedules made of that.

live_bytes   what a device holds
half_run     one half of a step as it runs
entry        one value of a call, on its way out and back
calls        one step: its calls, when their ops ran, which schedule each call follows
comparison   what steps have in common, and whether they have changed
book         the programs of this process: what was measured, and the schedule of each
"""
