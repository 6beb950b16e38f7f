"""The surface: which path is answered by what, for everybody but the operator."""

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import FastAPI

from gateway.config import Config
from gateway.http.background_responses import BackgroundRuns
from gateway.http.chat_socket import ChatSocket, FrameEndpoint
from gateway.http.chat_streams import ResumeEndpoint, Resumption, chat_stop_router, resume_routes
from gateway.http.count_tokens import count_router
from gateway.http.front import Front
from gateway.http.health import health_router
from gateway.http.inference import InferenceEndpoint, inference_routes, models_router
from gateway.http.response_keeping import unkept_counter
from gateway.http.responses import ResponsesEndpoint
from gateway.http.responses_socket import FramedResponses, ResponsesSocket
from gateway.http.stored_responses import stored_responses_router
from gateway.http.streams import streams_router
from gateway.http.websockets import SocketBounds, Sockets, socket_routes
from gateway.identity.authenticator import Authenticator
from gateway.ledger import Streams
from gateway.limits.redis import Redis
from gateway.protocols.ai_sdk_4 import AiSdk4Server, DataStreamEncoder
from gateway.protocols.ai_sdk_ui.server import AiSdkCompletionServer, AiSdkUiServer
from gateway.protocols.anthropic_messages.server import AnthropicMessagesServer
from gateway.protocols.openai_chat.server import OpenAiChatServer
from gateway.protocols.openai_completions import OpenAiCompletionsServer
from gateway.protocols.openai_embeddings import OpenAiEmbeddingsServer
from gateway.protocols.openai_responses.server import OpenAiResponsesServer
from gateway.protocols.wire import ServerRole
from gateway.responses.store import ResponseStore, StoreBounds
from gateway.services import Services
from gateway.streams.log import LogBounds, LogReader


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoints are made of; ``stop`` ends the stream of an id, wherever it runs.

    ``bulk`` is a second connection to the same Redis, for what is large.
    """

    services: Services
    authenticator: Authenticator
    redis: Redis
    bulk: Redis
    stop: Callable[[str], Awaitable[None]]


def inference_roles(config: Config) -> dict[str, ServerRole]:
    """The paths that models answer, each with the protocol it speaks."""
    return {
        "/v1/chat/completions": OpenAiChatServer(),
        "/v1/responses": OpenAiResponsesServer(),
        "/v1/completions": OpenAiCompletionsServer(),
        "/v1/embeddings": OpenAiEmbeddingsServer(),
        "/v1/messages": AnthropicMessagesServer(),
        "/api/ai/chat-stream": AiSdk4Server(),
        "/api/chat": AiSdkUiServer(default_model=config.chat.default_model, compat=config.chat.ui_stream_compat),
        "/api/completion": AiSdkCompletionServer(
            DataStreamEncoder, default_model=config.chat.default_model, compat=config.chat.ui_stream_compat
        ),
    }


class Surface(msgspec.Struct, frozen=True):
    """What of the paths follows the configuration while they are in use."""

    endpoints: dict[str, InferenceEndpoint]
    frames: FrameEndpoint
    resumption: Resumption
    runs: BackgroundRuns | None

    def follow(self, config: Config) -> None:
        """Read and answer later requests by this configuration."""
        roles = inference_roles(config)
        for path, endpoint in self.endpoints.items():
            endpoint.speak(roles[path])
        self.frames.speak(_frame_role(config))
        bounds = _log_bounds(config)
        self.resumption.follow(bounds, is_default=config.chat.resumable)
        if self.runs is not None:
            self.runs.bounds = bounds


def add_routes(fastapi: FastAPI, front: Front, config: Config, parts: Parts) -> Surface:
    """Every path of the surface."""
    authenticator, services = parts.authenticator, parts.services
    body_bytes_max = config.server.body_bytes_max
    streams = Streams(parts.redis)
    bounds = _log_bounds(config)
    reader = LogReader(parts.bulk, streams, bounds)
    resumption = Resumption(parts.bulk, reader, bounds, is_default=config.chat.resumable)
    endpoints = {
        path: InferenceEndpoint(role, authenticator, services, body_bytes_max=body_bytes_max, resumption=resumption)
        for path, role in inference_roles(config).items()
    }
    unkept = unkept_counter(services.telemetry.registry)
    stored, runs = _response_store(config, parts.bulk), None
    if stored is not None:
        runs = BackgroundRuns(stored, streams, reader, (parts.bulk, bounds), services, parts.stop)
        endpoints["/v1/responses"] = ResponsesEndpoint(
            authenticator, services, runs, unkept, body_bytes_max=body_bytes_max
        )
    front.direct.update(endpoints)
    fastapi.router.routes.extend(inference_routes(endpoints))
    ui = ResumeEndpoint(AiSdkUiServer(), authenticator, services, resumption)
    lines = ResumeEndpoint(AiSdk4Server(), authenticator, services, resumption)
    resumable = {"/api/chat/{chat_id:path}/stream": ui, "/api/ai/chat-stream": lines}
    fastapi.router.routes.extend(resume_routes(resumable))
    fastapi.include_router(chat_stop_router(authenticator, resumption, parts.stop))
    frames = FrameEndpoint(_frame_role(config), authenticator, services, resumption, body_bytes_max=body_bytes_max)
    sockets = _add_sockets(front, config, parts, frames)
    framed = FramedResponses(authenticator, services, runs, unkept, body_bytes_max=body_bytes_max)
    front.sockets["/v1/responses"] = ResponsesSocket(sockets, framed, services)
    fastapi.router.routes.extend(socket_routes(front.sockets))
    fastapi.include_router(count_router(authenticator, services, body_bytes_max=body_bytes_max))
    fastapi.include_router(models_router(authenticator, services))
    fastapi.include_router(stored_responses_router(authenticator, runs))
    fastapi.include_router(streams_router(authenticator, streams, parts.stop))
    fastapi.include_router(health_router(services, parts.redis))
    return Surface(endpoints, frames, resumption, runs)


def _response_store(config: Config, bulk: Redis) -> ResponseStore | None:
    settings = config.responses
    return ResponseStore(bulk, StoreBounds(**settings.model_dump(exclude={"store"}))) if settings.store else None


def _log_bounds(config: Config) -> LogBounds:
    return LogBounds(**config.resume.model_dump())


def _frame_role(config: Config) -> AiSdkUiServer:
    return AiSdkUiServer(default_model=config.chat.default_model, compat="7")  # older ones have no such transport


def _add_sockets(front: Front, config: Config, parts: Parts, endpoint: FrameEndpoint) -> Sockets:
    """The paths that take WebSockets, and the clock of their connections."""
    server = config.server
    bounds = SocketBounds(
        connections_max=server.streams_max, body_bytes_max=server.body_bytes_max, allows_origin=front.allows
    )
    sockets = Sockets(parts.services, parts.authenticator, bounds)
    front.sockets["/api/chat/ws"] = ChatSocket(sockets, endpoint, parts.services, parts.stop)
    parts.services.tasks.start(sockets.run(), "sockets")
    return sockets
