"""Measurements and large checks of SpecEdge, run by hand; the installed packages do not contain them."""
