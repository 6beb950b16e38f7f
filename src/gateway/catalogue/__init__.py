"""What is known of models before one is asked: how much they take, what they cannot do, what they cost.

The facts ship with the package, a file of the operator's may renew them, and the configuration has the last word.
What nobody knows restricts nothing: the provider says so itself. ``fitting`` makes of it what a request needs.
"""
