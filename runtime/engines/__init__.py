"""Engines: slots for bytes, and asynchronous transfers to and from them.

ioengine        the protocol of engines
posix           threads with one pwrite or pread for each transfer
kvikio_engine   the library KvikIO
memory          host memory in place of a drive;  memory_limit: how much there is
checksum        an engine around another one, which compares digests
striping        slots over several files, for posix and kvikio_engine
spill_file      one unlinked, preallocated file;  slots: its extents
workers         threads that move bytes
"""
