"""How a device is reached: run a command there, keep a channel open, move files.

``base`` is the interface; ``local`` is this machine, ``ssh`` everything else that runs now.
"""
