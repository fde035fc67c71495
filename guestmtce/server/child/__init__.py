"""Runs unprivileged, once per guest. It imports common, wire and itself only: an import costs every child."""
