"""Instruments as local servers and pseudo-terminals that speak the real protocols."""
