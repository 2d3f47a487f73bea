"""Service `lbguard run`: its parts (`parts.py`), life (`daemon.py`), loop (`runner.py`), and actuators of effects."""
