"""Generated code; see scripts/generate-proto."""
