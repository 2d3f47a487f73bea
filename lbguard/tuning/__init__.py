"""Replay of recorded incidents under other settings, to compare what each would have cost."""
