"""The UI message stream of Vercel's AI SDK 5, 6 and 7, and what their ``useChat`` and ``useCompletion`` post.

Reference: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol. Nothing on the wire tells the client's version, and
releases before 5.0.217, 6.0.231 and 7.0.32 refuse a part with a field they do not know; so only what 5.0.0 accepts is
sent unless ``Compat`` says that every client is newer. Server role only: nobody serves models in this format.
"""

from typing import Literal, TypeAlias

NAME = "ai_sdk_ui"

Compat: TypeAlias = Literal["5-strict", "5", "6", "7"]
"""The oldest clients there are: 5.0.0, 5.0.92, 6.0.15 or 7.0.0, and everything after it."""
