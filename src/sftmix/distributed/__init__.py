"""Devices, processes, process groups, sharding and strategies."""
