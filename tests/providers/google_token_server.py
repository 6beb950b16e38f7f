"""Google's token endpoint on this machine: it checks a service account's assertion and gives tokens, or does not."""

import base64
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

EMAIL = "gateway@acme.iam.gserviceaccount.com"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class TokenServer:
    """Gives the tokens ``token-1``, ``token-2`` … while the context lasts.

    ``expires_in`` is in seconds. While ``gate`` is clear, answers wait. ``status`` other than 200 refuses.
    """

    def __init__(self) -> None:
        self.expires_in = 3600
        self.status = 200
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._responder())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}/token"

    def key_file(self, folder: Path, **change: Any) -> str:
        """The service account's JSON key, with another ``token_uri``."""
        private = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        content = {
            "type": "service_account",
            "project_id": "acme",
            "private_key_id": "k1",
            "private_key": private.decode(),
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": self.url,
        }
        path = folder / "key.json"
        path.write_text(json.dumps({**content, **change}))
        return str(path)

    def _responder(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Responder(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                status, body = server.answer(form)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Responder

    def answer(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """A token for a good assertion."""
        self.asked += 1
        number = self.asked
        self.gate.wait(10)
        if self.status != 200:
            return self.status, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        if form["grant_type"] != [GRANT] or not self._is_ours(form["assertion"][0]):
            return 400, {"error": "invalid_grant", "error_description": "The assertion is wrong."}
        return 200, {"access_token": f"token-{number}", "expires_in": self.expires_in, "token_type": "Bearer"}

    def _is_ours(self, assertion: str) -> bool:
        signed, _, signature = assertion.rpartition(".")
        self._key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        claims = json.loads(_decoded(signed.partition(".")[2]))
        return bool(claims["iss"] == EMAIL and claims["aud"].endswith("/token") and claims["scope"] == SCOPE)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
