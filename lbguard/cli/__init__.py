"""The command line: one module for each kind of command, and those that render what they print."""
