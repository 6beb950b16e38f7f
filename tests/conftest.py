"""What holds for every test: no verdict depends on how fast the machine is."""

from hypothesis import settings

settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")
