"""Sources of streams and targets: `file`, `kernel`, `nsp` (Meridio's registry), `kubernetes`, `interposer` (calls)."""
