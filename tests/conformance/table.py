"""``python -m tests.conformance.table`` writes ``docs/translation.md`` from what the suites declare and check."""

from pathlib import Path

from tests.conformance.answers import PLANS
from tests.conformance.cases import CASES
from tests.conformance.losses import ANSWERS, DEFECTS, PROVIDERS, TOLD_ANEW, UNHEARD, UNREPAIRED, Loss, understood_by
from tests.conformance.pairs import REQUESTS, Unsent
from tests.conformance.readers import FORMATS
from tests.conformance.requests import BODIES, PATHS

DOC = Path(__file__).parent.parent.parent / "docs" / "translation.md"

# Formats that only providers speak.
TITLES = {"gemini": "Gemini", "bedrock_converse": "Bedrock Converse"}
_PASSED = "nothing: passed as it is"

HEAD = """# Translation

What is kept where a client speaks one format and the provider another, and what is not. Every cell and every line of
this page is checked by `tests/conformance`: the requests against the rules of the simulated providers, the answers by
strict readers of each format. The page is written by `python -m tests.conformance.table` from the same declarations,
and a test fails when it is out of date.

Where both sides speak the same format, the body passes as it is, fields that the gateway does not know included, and
so do the events of Chat Completions and Messages. Those of Responses are told anew, with the gateway's own ids.
"""
KEPT = """## Pairs

In every pair these are kept, but for what its row names: system, user and assistant text, images, tools with their
schemas, calls with their arguments, results, a forced tool, one call at a time, the output limit, `temperature`,
`top_p` and the user; and of the answer its text, reasoning, calls with their arguments, finish reason and usage with
cached and reasoning tokens, an error within the stream, and that a stream was truncated. A client of any of the three
may send an answer back as it got it: Anthropic and Claude at Bedrock get their own thinking with the signatures they
gave, Gemini its thought signatures on the parts that they came with, a provider of Responses its own reasoning as it
was encrypted. A conversation with calls that were never answered is repaired where the formats differ. What a pair does
not carry:
"""


def main() -> None:
    """Writes the page."""
    DOC.write_text(render())


def render() -> str:
    """The page."""
    lines = [HEAD, KEPT, *_pairs(), "", "## Requests", "", *_requests(), "", "## Answers", "", *_answers()]
    lines += ["", "## Cases", "", *_cases(), "", "## Known defects", "", *_defects()]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    return TITLES.get(name) or FORMATS[name].title


def _pairs() -> list[str]:
    lines = ["| client | provider | requests lose | answers lose |", "|---|---|---|---|"]
    for client in BODIES:
        for provider in (*BODIES, *PATHS):
            cells = [_title(client), _title(provider), *_pair(client, provider)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair(client: str, provider: str) -> tuple[str, str]:
    unsent = "; ".join(it.what for it in REQUESTS if (it.client, it.provider) == (client, provider))
    if client == provider:
        return unsent or _PASSED, "; ".join(TOLD_ANEW.get(client, ())) or _PASSED
    return unsent or "nothing", "; ".join(_lost(client, provider)) or "nothing"


def _lost(client: str, provider: str) -> list[str]:
    """The losses that change something of what this provider can say."""
    losses = (*PROVIDERS[provider], *ANSWERS[client])
    found: dict[str, None] = {}
    for answer in PLANS:
        said = answer.of(provider)
        for loss in losses:
            if loss.change(said) != said:
                found[loss.what] = None
            said = loss.change(said)
    return [*found, *UNHEARD.get(provider, ())]


def _requests() -> list[str]:
    lines = [
        "*Refused* is an error of the gateway that names the field; *dropped* means that the request goes out as if it",
        "had not been asked for; *changed*, that something near it is asked; *rejected* is the provider's own refusal.",
        "Dropped and changed fields are named in [`x-gateway-warnings`](warnings.md); a client with",
        "`x-gateway-strict: true` is refused instead.",
        "",
        "| client | provider | asked for | becomes |",
        "|---|---|---|---|",
    ]
    return lines + [f"| {_title(it.client)} | {_title(it.provider)} | {it.what} | {_fate(it)} |" for it in REQUESTS]


def _fate(unsent: Unsent) -> str:
    if unsent.refused is not None:
        return f"refused, naming `{unsent.refused}`"
    return f"{unsent.fate}: {unsent.why}"


def _answers() -> list[str]:
    lines = ["What a provider says is told to clients of every format, those of the AI SDK included.", ""]
    lines += ["| side | format | said | becomes |", "|---|---|---|---|"]
    for side, declared in (("provider", PROVIDERS), ("client", ANSWERS)):
        for name, losses in declared.items():
            told = [_loss(side, name, loss) for loss in losses]
            if side == "provider":
                told += [
                    f"| {side} | {_title(name)} | {what} | dropped: not translated |" for what in UNHEARD.get(name, ())
                ]
            lines += told or [f"| {side} | {_title(name)} | everything | kept |"]
    return lines


def _loss(side: str, name: str, loss: Loss) -> str:
    return f"| {side} | {_title(name)} | {loss.what} | {loss.becomes} |"


def _cases() -> list[str]:
    lines = [
        "Each case goes to each format that clients speak, streamed and, where the format has whole answers, whole.",
        "",
        f"| case | {' | '.join(_title(name) for name in FORMATS)} |",
        f"|---|{'---|' * len(FORMATS)}",
    ]
    for case in CASES:
        cells = []
        for name in FORMATS:
            is_whole = understood_by(ANSWERS[name], case.understood) == case.understood
            cells.append("defect" if (name, case.name) in DEFECTS else "kept" if is_whole else "in part")
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return lines


def _defects() -> list[str]:
    found = [f"- {_title(name)}, {case}: {what}." for (name, case), what in DEFECTS.items()]
    found += [
        f"- Providers of {_title(name)}, from clients of other formats: {what}." for name, what in UNREPAIRED.items()
    ]
    return found or ["None."]


if __name__ == "__main__":
    main()
