"""Meters: one file a power source. Stdlib only, Python >= 3.8: these files travel to devices."""
