"""Runs in an environment of its own: `python serve.py <module>`. Each line of stdin asks for one way of that module.

A line is `{"way": …, "arguments": {…}}`; the answer is a line too, `{"result": …}` or `{"error": …}` where the client
raised what its users catch. Only one import per module of tests is paid for this way.
"""

import contextlib
import importlib
import io
import json
import sys
from typing import Any


def snippet(code: str, **_: Any) -> str:
    """What a piece of code prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    return printed.getvalue()


def main() -> None:
    """Answer until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    module = importlib.import_module(sys.argv[1])
    ways = {**module.WAYS, "snippet": snippet}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"result": ways[asked["way"]](**asked["arguments"])}
        except module.ERRORS as error:
            answer = {"error": module.describe(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
