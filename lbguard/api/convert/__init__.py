"""Between the core's values and the messages of the API. Pure; going there and back loses nothing."""
