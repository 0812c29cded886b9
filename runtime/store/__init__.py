"""The store: one value from its offload to its wait.

store           offload, release, prefetch, wait, free
ticket          what is known of one value
storing         the way out: a slot, and a write
loading         the way back: forwarded from memory, or read
ledger          the lock, bytes in flight, the end of transfers
callers         tensors of the caller's: changed meanwhile, or kept anyway
counters        what the store did
"""
