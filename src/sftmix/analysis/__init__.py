"""How sure a difference is: statistics that can tell a recipe from a seed."""
