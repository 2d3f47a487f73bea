"""Where the list of streams and targets comes from."""
