"""Sources of streams and targets: `file`, `kernel`, `nsp` (Meridio's registry), `interposer` (calls of nfqlb)."""
