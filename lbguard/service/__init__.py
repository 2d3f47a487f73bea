"""The service `lbguard run`: the composition root, the loop, and what carries effects out."""
