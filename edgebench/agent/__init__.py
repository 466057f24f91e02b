"""What runs on the device. ``agent.py`` is one self-contained file; nothing here imports the rest."""
