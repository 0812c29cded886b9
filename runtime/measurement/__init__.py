"""Probes of the machine, each run once and kept on disk, and the clocks of ops.

choice          the engine of the disk tier, and the reason for it
bandwidth       the bandwidth of an engine
contention      the compute time that transfers take on the same cores
load            compute beside which transfers are measured
speed           the speed of a device, and of its copies to and from the host
probe_cache     measured numbers on disk
host_share      the host memory that the host tier of a GPU takes by default
clocks          when ops ran, by the host or the device
"""
