"""The store: keeps each offloaded value, from its offload to its wait.

store           the OffloadStore: offload, release, prefetch, wait, free
ticket          the record of one offloaded value
storing         the way out: allocates a slot and starts the write
loading         the way back: forwards the value from memory, or reads it
ledger          the lock, the bytes in flight, and the end of transfers
callers         tensors that belong to the caller: detects in-place changes and shared memory
sharing         gives graphs that save one tensor of the caller one ticket
counters        the statistics of a store
"""
