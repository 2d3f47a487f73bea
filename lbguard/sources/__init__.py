"""Sources of the list of streams and targets."""
