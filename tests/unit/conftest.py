"""Settings of the unit tier."""

from hypothesis import settings

# Machines that run the tests are shared; a slow example is no failure.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
