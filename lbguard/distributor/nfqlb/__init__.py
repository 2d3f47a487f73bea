"""Distributor nfqlb: slot tables in nfqlb's shared memory."""
