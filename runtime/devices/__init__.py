"""Devices: from a tensor's memory to bytes that an engine can move, and back.

transfer        the protocols, and the layout of bytes in a slot
devices         finds what moves the tensors of a torch device
host, cuda      tensors in host memory, and on a GPU
streams         the side streams of a GPU, and their order
staging         pinned buffers of bounded size
buffers         raw bytes of tensors, aligned memory
"""
