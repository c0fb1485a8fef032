"""Plugin processes: starting, watching and ending them."""
