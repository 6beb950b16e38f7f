"""TensorZero's gateway without its container: run by the interpreter of its own environment, not by ours.

The wheel on PyPI holds the whole gateway as a library and starts its HTTP server for clients in the same process
(`_start_http_gateway`, which its `patch_openai_client` calls). It chooses a port of its own, which is written to the
file named second; the configuration is named first.
"""

import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tensorzero import _start_http_gateway  # type: ignore[import-not-found]

config_file, port_file = sys.argv[1:]
gateway = _start_http_gateway(
    config_file=config_file, clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
Path(port_file).write_text(str(urlsplit(gateway.base_url).port))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pause()
