"""The distributor nfqlb: its shared memory, or its stock commands."""
