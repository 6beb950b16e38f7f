"""Answers that outlive their client's connection: the log of what was said, its readers, and who talks to whom.

The exchange writes to its client and to the log; whoever comes back reads the log, on whichever gateway.
"""
