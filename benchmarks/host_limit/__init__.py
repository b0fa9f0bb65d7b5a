"""How many sessions one verifier process carries: a real one, with a target that costs nothing, under real streams."""
