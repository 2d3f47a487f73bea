"""What maps packets to fwmarks: nfqlb, nftables, or nothing (observe)."""
