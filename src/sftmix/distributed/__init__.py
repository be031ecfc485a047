"""Devices, processes and their launchers, signals, process groups, sharding and strategies."""
