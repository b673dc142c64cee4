//! Real clients in Python.
