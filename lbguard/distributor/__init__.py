"""Distributors, which map packets to fwmarks (nfqlb, nftables), and their slot tables (`maglev.py`)."""
