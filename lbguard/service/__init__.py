"""Service `lbguard run`: composition root (`daemon.py`), loop (`runner.py`), and actuators of the engine's effects."""
