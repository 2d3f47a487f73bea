"""The distributor nfqlb: its shared memory."""
