"""The words every room shares: requests, events, usage, errors, callers.

No I/O happens here and nothing of ours is imported from outside this folder. A client protocol and a provider
format never meet; each translates to and from these types, so N protocols and M formats cost N + M files.
"""
