"""The configuration's sections about prices; ``config.py`` hands them on with the rest."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.config_clouds import Section

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class RatesConfig(Section):
    """What tokens cost, in USD per million tokens."""

    input: Usd = Field(description="Input tokens.")
    output: Usd = Field(description="Output tokens, reasoning included.")
    cache_read: Usd | None = Field(None, description="Input read from the provider's cache; as input where unset.")
    cache_write: Usd | None = Field(None, description="Input written to the provider's cache; as input where unset.")
    reasoning: Usd | None = Field(None, description="Reasoning tokens; as output where unset.")
    image: Annotated[Decimal, Field(ge=0, le=1000)] = Field(Decimal(0), description="USD per picture in the input.")
    request: Annotated[Decimal, Field(ge=0, le=1000)] = Field(Decimal(0), description="USD per request.")


def _kind(value: Any) -> str:
    """Which of the two forms was meant, so that what is wrong with it is told once."""
    return "[word]" if isinstance(value, str) else "[tiers]"


_TierName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")]
_Ignore = Annotated[Literal["ignore"], Tag("[word]")]
_Tiers = Annotated[dict[_TierName, RatesConfig], Tag("[tiers]")]


class PriceConfig(RatesConfig):
    """What tokens cost, in USD per million tokens."""

    service_tiers: Annotated[_Tiers | _Ignore, Discriminator(_kind)] = Field(
        {},
        description="The same by the vendor's `service_tier` (`flex`, `priority`, …), `image` and `request` as above "
        "where unset. A request for one that is not here is refused; with `ignore` each costs what this price says.",
    )
