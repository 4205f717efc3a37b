"""`python -m vertex_launch verify`: measures in the user's own project what the documentation assumes."""
