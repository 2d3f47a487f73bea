"""Command line: one module for each kind of command, and modules that render the output."""
