"""Allowances and money: who may start, how far a running stream is paid for, and what it cost in the end.

Every decision that must be atomic is one Lua script in ``lua/``, called through its typed stub in ``scripts.py``.
Redis keys are spelled in ``keys.py`` only. Amounts are integer micro-USD (µ$); see docs/decisions for the protocol.
"""
