"""What is told of the service: log, metrics, HTTP pages, decisions and their text."""
