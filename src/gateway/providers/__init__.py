"""Whom we talk to: addresses, credentials, time limits, and which wire format they speak.

Adding an OpenAI-compatible vendor is one row in ``rows.py``; a vendor with a format of its own is one file here and
one in ``protocols/``. Providers never import each other.
"""
