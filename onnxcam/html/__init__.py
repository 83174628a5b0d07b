"""Self-contained HTML pages: style, charts and pictures inside, no script, no network, legible without colour."""
