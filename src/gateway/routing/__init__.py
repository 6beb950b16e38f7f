"""Which deployment is asked, how often, and which is left alone for a while.

A deployment is one model of one provider. What is known of it here is this process's own view, with what other replicas
tell about it; nothing in this room does I/O.
"""
