"""Amazon Bedrock's Converse format, which is spoken to providers only.

``client`` writes requests, with ``history``, ``families`` and ``thinking`` for what differs between the models behind
it; ``stream`` reads AWS's binary event stream with botocore, which is an extra: nothing here is imported unless a
provider is of this kind. ``errors`` says what it refuses with, ``losses`` what it is not asked for.
"""

NAME = "bedrock_converse"
