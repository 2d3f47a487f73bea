"""Parking: packets of targets whose path is broken are kept for a while, and given back when it is repaired."""
