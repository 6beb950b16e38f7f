"""Wire formats, one file (or folder) each, in both roles: towards clients and towards providers.

A line that names a JSON field of a vendor's format belongs here and nowhere else. Formats never import each other.
"""
