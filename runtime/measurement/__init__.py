"""Measurements, each made once on a machine, and the stopwatch of a graph.

choice          which engine moves the bytes of the disk tier, and why
bandwidth       what an engine delivers
contention      what transfers take from compute on the same cores
speed           how fast a device computes, and exchanges bytes with the host
probe_cache     measured numbers on disk
recorder        when the ops of a graph ran
"""
