"""The datapath monitor: what the proxy or target side of a link finds when it pings the other end."""
