"""Settings: their groups, their sources (flags, environment, file) and their checks."""
