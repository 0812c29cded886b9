"""Engines: slots for bytes, and asynchronous transfers to and from them.

ioengine        the protocol of engines
future          futures of transfers
pieces          parts of large values, and the transfer that consists of theirs
posix           threads with one pwrite or pread for each transfer
kvikio_engine   the library KvikIO
gds_engine      KvikIO with GPUDirect Storage, for device memory
memory          slots in host memory, in place of a drive
memory_limit    the host memory that this process may use
checksum        wraps another engine and compares digests
metered         wraps another engine and measures its transfers
striping        slots over several files, for posix and kvikio_engine
spill_file      one unlinked, preallocated file
slots           allocates extents of a file or of memory
workers         threads that move bytes
"""
