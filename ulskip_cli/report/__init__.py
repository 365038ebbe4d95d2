"""Rows made visible: tables for terminals and papers, strips of layers, progress bars."""
