"""Figures from recordings. Nothing is imported here; matplotlib loads when something is drawn.

``power_trace``   a run's power over time, as PNG and PDF
"""
