"""Gratuitous ARP and unsolicited neighbour advertisements: frames (pure) and their paced sending."""
