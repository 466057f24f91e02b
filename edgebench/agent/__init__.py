"""What runs on the device: ``agent.py``, one self-contained file that imports nothing of ours."""
