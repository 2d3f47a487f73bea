"""Removed settings and values of earlier versions, each with its replacement."""

REMOVED_SETTINGS = {
    "distributor.nfqlb_binary": "was removed with distributor.kind=nfqlb-cli; use nfqlb-shm, which runs no program",
}

REMOVED_VALUES = {
    ("distributor.kind", "nfqlb-cli"): "was removed; use nfqlb-shm, which writes the same memory and loses no packet",
}
