"""Messages of rtnetlink, decoded and encoded without anything in between."""
