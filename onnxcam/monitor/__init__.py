"""Monitoring in production: explains and records uncertain predictions, detects drift."""
