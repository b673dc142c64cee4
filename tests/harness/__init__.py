"""Drives the real service through the real clients: pywbem for CIM-XML, pypsrp for WS-Management."""
