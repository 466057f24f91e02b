"""Calibration sampling: configurations drawn, exported for real, and measured on a device."""
