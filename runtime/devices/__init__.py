"""Devices: turn a tensor's memory into bytes that an engine can move, and back.

transfer        the protocols, and the layout of bytes in a slot
devices         finds the Device of a torch device
host            tensors in host memory
cuda            tensors on a GPU
cuda_arrival    GPU tensors on their way back
cuda_memory     what holds the memory that copies use
cuda_deferred   transfers that wait for what the GPU does
cuda_direct     GPU tensors that an engine moves without host memory
cuda_read       the read of a GPU tensor: the engine, then copy to the device
streams         the side streams of a GPU, and their order
staging         a bounded arena of pinned staging buffers
buffers         raw bytes of tensors, aligned memory, reusable staging buffers
"""
